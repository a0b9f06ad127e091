"""The command `fedlora`: what it prints, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from fedlora import cli
from fedlora.base.pack import open_pack
from fedlora.version import __version__

from tests.tiny.checkpoints import tree

Run = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture
def fedlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedlora:
    return Fedlora(monkeypatch, capsys)


class Fedlora:
    """`fedlora ARGUMENTS...` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Run:
        self._monkeypatch.setattr(sys, "argv", ["fedlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else int(code is not None), captured.out, captured.err


def test_the_version_is_the_packages(fedlora: Fedlora) -> None:
    assert fedlora("--version") == (0, f"fedlora, version {__version__}\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_what_a_role_contributes_and_says_which_extra_is_missing(
    fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    points = [
        EntryPoint("pack", "fedlora.commands.pack:pack", cli.GROUP),
        EntryPoint("serve", "fedlora_serve.not_there:serve", cli.GROUP),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    code, out, _ = fedlora(option)
    assert code == 0
    assert "Quantize SOURCE" in out
    assert "(needs the extra 'serve'" in out


def test_a_command_whose_extra_is_missing_says_how_to_install_it(
    fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [EntryPoint("simulate", "fedlora_simulations.not_there:simulate", cli.GROUP)]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    code, out, err = fedlora("simulate", "scenario.toml", "--some-option")
    assert code == 1
    assert out == ""
    assert "fedlora simulate needs the extra 'simulate': pip install 'fedlora[simulate]'" in err


def test_a_role_that_is_not_ours_is_in_the_extra_all(fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint("x", "not_there:x", cli.GROUP)])
    assert "pip install 'fedlora[all]'" in fedlora("x")[2]


def test_an_unknown_command_is_a_usage_error(fedlora: Fedlora) -> None:
    code, _, err = fedlora("pakc")
    assert code == 2
    assert "No such command 'pakc'; did you mean pack?" in err


def test_an_unknown_command_that_is_like_none_is_told_where_they_are_listed(fedlora: Fedlora) -> None:
    assert "No such command 'xyzzy'; fedlora --help lists them" in fedlora("xyzzy")[2]


def test_the_help_has_a_whole_sentence_for_every_command(fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = " ".join(fedlora("--help")[1].split())
    for name in cli.commands.list_commands(click.Context(cli.commands)):
        command = cli.commands.get_command(click.Context(cli.commands), name)
        assert command is not None
        assert command.help is not None
        sentence = " ".join(command.help.partition("\n\n")[0].split())
        assert f"{name} {sentence.rstrip('.')}" in told
    assert "..." not in told.partition("Commands:")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_that_asks_fedlora_and_is_told_where_to_put_it(
    fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    code, script, _ = fedlora("completion", shell)
    assert code == 0
    assert f"_FEDLORA_COMPLETE={shell}_complete" in script
    assert f"fedlora completion {shell} > ~/" in script.splitlines()[-1]
    assert (script.splitlines()[0] == "#compdef fedlora") == (shell == "zsh"), "zsh reads its first line"
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert fedlora("completion") == (0, script, "")


def test_a_script_is_the_same_where_another_package_has_its_own_way_to_complete(
    fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fedlora("completion", "bash")
    other = type("Other", (click.shell_completion.BashComplete,), {"source_template": "another script"})
    monkeypatch.setitem(click.shell_completion._available_shells, "bash", other)
    assert fedlora("completion", "bash") == expected


def test_a_shell_that_cannot_complete_is_named(fedlora: Fedlora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/dash")
    code, out, err = fedlora("completion")
    assert (code, out) == (2, "")
    assert "$SHELL is 'dash'; name one of bash, zsh, fish" in err


@pytest.mark.parametrize(
    ("words", "offered"),
    [("fedlora ins", ["inspect"]), ("fedlora inspect --he", ["--help"]), ("fedlora --ver", ["--version"])],
)
def test_a_shell_that_asks_is_told_what_goes_on_so(words: str, offered: list[str]) -> None:
    asked = {"_FEDLORA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code, out, _ = _installed(environment=asked)
    assert (code, [line.partition(",")[2] for line in out.splitlines()]) == (0, offered)


def test_pack_makes_a_pack_and_tells_its_fingerprint(fedlora: Fedlora, tmp_path: Path, checkpoint: Path) -> None:
    code, out, err = fedlora("pack", checkpoint, "-o", tmp_path / "pack", "--block-size", 32)
    assert code == 0
    assert out == ""
    assert open_pack(tmp_path / "pack").fingerprint in err


def test_the_options_of_pack_are_those_of_the_quantization(fedlora: Fedlora, tmp_path: Path, checkpoint: Path) -> None:
    options = ["--bits", "8", "--embedding-bits", "4", "--block-size", "32", "--asymmetric"]
    assert fedlora("pack", checkpoint, "-o", tmp_path / "pack", *options)[0] == 0
    made = open_pack(tmp_path / "pack").quantization
    assert (made.bits, made.embedding_bits, made.block_size, made.symmetric) == (8, 4, 32, False)


@pytest.mark.parametrize(("options", "rule"), [((), "mse"), (("--scales", "max-abs"), "max-abs")])
def test_the_scales_of_a_pack_are_of_least_error_unless_another_rule_is_asked_for(
    fedlora: Fedlora, tmp_path: Path, checkpoint: Path, options: tuple[str, ...], rule: str
) -> None:
    assert fedlora("pack", checkpoint, "-o", tmp_path / "pack", "--block-size", 32, *options)[0] == 0
    assert open_pack(tmp_path / "pack").scales == rule


def test_pack_replaces_an_output_only_by_force(fedlora: Fedlora, tmp_path: Path, checkpoint: Path) -> None:
    arguments = ("pack", checkpoint, "-o", tmp_path / "out" / "pack", "--block-size", 32)
    assert fedlora(*arguments)[0] == 0
    before = tree(tmp_path / "out")
    code, _, err = fedlora(*arguments, "--bits", 8)
    assert (code, err.startswith("error: ")) == (1, True)
    assert "exists already" in err
    assert tree(tmp_path / "out") == before
    assert fedlora(*arguments, "--bits", 8, "--force")[0] == 0
    assert open_pack(tmp_path / "out" / "pack").quantization.bits == 8


@pytest.mark.parametrize(
    "option", [("--bits", 3), ("--block-size", 48), ("--embedding-bits", 16), ("--scales", "best")]
)
def test_pack_refuses_an_option_out_of_range_as_a_usage_error(
    fedlora: Fedlora, tmp_path: Path, checkpoint: Path, option: tuple[str, object]
) -> None:
    code, _, err = fedlora("pack", checkpoint, "-o", tmp_path / "pack", *option)
    assert code == 2
    assert option[0] in err
    assert not (tmp_path / "pack").exists()


def test_an_error_of_ours_is_one_line_on_standard_error_and_exit_code_1(
    fedlora: Fedlora, tmp_path: Path, checkpoint: Path
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (tmp_path / "out").mkdir()
    code, out, err = fedlora("pack", checkpoint, "-o", tmp_path / "out" / "pack", "--block-size", 32)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {checkpoint}: no tokenizer.json; save the model's fast tokenizer there")
    assert err.count("\n") == 1
    assert tree(tmp_path / "out") == {}


def test_an_output_below_a_file_is_an_error_of_ours(fedlora: Fedlora, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = fedlora("pack", checkpoint, "-o", tmp_path / "file" / "pack", "--block-size", 32)
    assert code == 1
    assert err.startswith("error: ")


def _installed(*arguments: object, environment: Mapping[str, str] | None = None) -> Run:
    """The installed command itself, in a process of its own."""
    script = Path(sys.executable).parent / "fedlora"
    done = subprocess.run(
        [script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_installed_command_fails_without_a_traceback(tmp_path: Path) -> None:
    code, out, err = _installed("inspect", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}: neither a base pack")
    assert err.count("\n") == 1


def test_core_commands_import_no_other_role() -> None:
    heavy = ["torch", "flwr", "onnx", "onnxruntime", "transformers", "fedlora_client", "fedlora_server"]
    check = (
        "import sys, fedlora, fedlora.cli, fedlora.commands.pack, fedlora.commands.inspect; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_command_ends_with_its_error_while_threads_that_were_left_behind_still_work() -> None:
    script = """
import threading, time
import click
from fedlora import cli, threads
from fedlora.errors import RunError

@cli.commands.command()
def slow():
    thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)
    thread.start()
    threads.leave_behind([thread])
    print("so far")
    raise RunError("given up")

import sys
sys.argv = ["fedlora", "slow"]
cli.RoleCommands.get_command = lambda self, ctx, name: slow
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (1, "so far\n", "error: given up\n")
