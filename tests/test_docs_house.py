"""docs/house.md names every folder with code, and what the documents name and link is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
CODE = (".py", ".c", ".h", ".toml", ".html", ".js")


def folders_with_code() -> set[str]:
    """The folders of the files of code that git knows, but the project's own."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"{PROJECT} is no checkout of git: {listed.stderr.strip()}")
    folders = {str(Path(file).parent) for file in listed.stdout.splitlines() if file.endswith(CODE)}
    return folders - {"."}


def named_folders() -> list[str]:
    """What the first column of each table names."""
    text = (PROJECT / "docs" / "house.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def rooms_of_tests(named: list[str]) -> set[str]:
    """{tests/ROLE/ROOM} for every room of a package: its tests have a folder of its name."""
    rooms = [folder.split("/", 2) for folder in named if re.match(r"\w+/fedlora\w*/", folder)]
    return {f"tests/{role}/{room}" for role, _, room in rooms}


def test_every_folder_with_code_is_named() -> None:
    named = named_folders()
    assert sorted(folders_with_code() - set(named) - rooms_of_tests(named)) == []


def test_every_folder_that_is_named_is_there_and_named_once() -> None:
    named = named_folders()
    assert [name for name in named if not (PROJECT / name).is_dir()] == []
    assert len(named) == len(set(named))


TOP = ("core", "client", "server", "export", "serve", "simulations", "tests", "benchmarks", "docs", "tools")
DOCUMENTS = [
    *PROJECT.glob("*.md"),
    *PROJECT.glob("docs/*.md"),
    *(PROJECT.joinpath(top, "README.md") for top in TOP[:6]),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_files_that_a_document_names_or_links_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./])(?:{'|'.join(TOP)})/[\w./-]*\w", text)
    linked = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    missing = [name for name in named if not (PROJECT / name).exists()]
    assert missing + [link for link in linked if not (document.parent / link).exists()] == []
