"""docs/security.md has no statement without its file and its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
TEXT = (PROJECT / "docs" / "security.md").read_text(encoding="utf-8")
_, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_a_section_says_what_holds_which_test_proves_it_and_what_remains(section: str) -> None:
    points = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
    holds = [point for point in points if not point.startswith("Remains: ")]
    assert holds
    assert len(points) == len(holds) + 1, "what remains stands in one point"
    for point in holds:
        assert [name for name in named_files(point) if name.startswith("tests/")], point
        assert [name for name in named_files(point) if not name.startswith("tests/")], point


def test_every_file_that_is_named_is_there() -> None:
    assert [name for name in named_files(TEXT) if not (PROJECT / name).is_file()] == []


def named_files(text: str) -> list[str]:
    """The paths in backticks, and those of the links to other documents."""
    linked = [f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)", text)]
    return re.findall(r"`([\w.-]+/[\w./-]+\.\w+)`", text) + linked
