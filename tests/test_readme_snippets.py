"""The Python in the READMEs of the packages runs as it stands, and the commands in all documents have their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from fedlora import PeftDirectory, open_pack, write_peft
from fedlora.cli import commands
from fedlora_export import export_base

from tests.tiny.adapters import random_adapter

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "client", "server", "export", "serve", "simulations")
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "*/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
# What is only long in a snippet is short here.
SHORTER = {"steps=50": "steps=2", "max_tokens=64": "max_tokens=4"}


def snippets(package: str) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```$", (ROOT / package / "README.md").read_text("utf-8"), re.M | re.S)
    for long, short in SHORTER.items():
        found = [snippet.replace(long, short) for snippet in found]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with all that the snippets take for granted."""
    folder, base = tmp_path_factory.mktemp("snippets"), open_pack("nano")
    content = PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint)
    for place in ("runs/demo/rounds/0008/adapter", "adapters/mine", "mine"):
        write_peft(str(folder / place), content)
    (folder / "notes.txt").write_text("".join(f"note {number} of many\n" for number in range(300)))
    return folder


@pytest.mark.parametrize("package", [package for package in PACKAGES if snippets(package)])
def test_the_python_of_a_readme_runs(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if package == "serve":
        export_base(open_pack("nano"), "model", profiles=("compat", "rows"))
    for snippet in snippets(package):
        exec(compile(snippet, f"{package}/README.md", "exec"), {})


def test_no_readme_with_python_is_left_out() -> None:
    tested = {ROOT / package / "README.md" for package in PACKAGES} | {ROOT / "README.md"}
    with_python = {path for path in ROOT.glob("*/README.md") if "```python" in path.read_text("utf-8")}
    assert with_python <= tested


def lines(path: Path) -> list[str]:
    """The lines of a document that are commands of fedlora, without what continues a sentence."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S))
    found = re.findall(r"^ {4}(?:\$ )?(fedlora [^\n]*)", text, re.M) + re.findall(r"`(fedlora [^`\n]*)`", text)
    found += re.findall(r"^(fedlora [^\n]*)", shell, re.M)
    return [line.partition("#")[0] for line in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_in_a_document_is_one_that_there_is_with_options_that_it_has(path: Path) -> None:
    context = click.Context(commands)
    for line in lines(path):
        try:
            words = shlex.split(line.replace("...", ""))
        except ValueError:  # a sentence, with an apostrophe
            continue
        if len(words) < 2 or not re.fullmatch(r"[a-z][a-z-]*", words[1]):
            continue
        command = commands.get_command(context, words[1])
        assert command is not None, f"{line!r}: there is no such command"
        if isinstance(command, click.Group) and len(words) > 2 and re.fullmatch(r"[a-z][a-z-]*", words[2]):
            command = command.get_command(context, words[2])
            assert command is not None, f"{line!r}: {words[1]} has no such command"
        elif isinstance(command, click.Group) and (default := getattr(command, "default", None)):
            command = command.commands[default]  # of a group that takes more than names of commands
        known = {
            name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words[2:]:
            option = word.strip("[]().,;").partition("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", option):
                assert option in known, f"{line!r}: {words[1]} has no {option}"
