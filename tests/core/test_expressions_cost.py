"""Every regular expression of the packages takes little time at any text, for most of them meet texts of strangers."""

from __future__ import annotations

import ast
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "client", "server", "export", "serve", "simulations")
MOST_SECONDS = 20  # for all texts of one expression; a sound one takes some milliseconds
LENGTH = 1500
LETTERS = " -.aA0_/\\\"'\n=:[({"
FLAGS = {"DOTALL": re.DOTALL, "MULTILINE": re.MULTILINE, "ASCII": re.ASCII, "IGNORECASE": re.IGNORECASE}


def expressions() -> Iterator[tuple[str, str | bytes, int, bool]]:
    """(where it stands, the expression, its flags, whether its module searches) of every one that is written out."""
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "import re" not in text:  # parsing takes long, and every process of the tests does it
                continue
            searches = re.search(r"\.(search|sub|subn|split|findall|finditer)\(", text) is not None
            for node in ast.walk(ast.parse(text)):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.args):
                    continue
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, (str, bytes)):
                    named = [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
                    flags = sum({FLAGS[name] for name in named if name in FLAGS})
                    yield f"{path.relative_to(PROJECT)}:{node.lineno}", first.value, flags, searches


def texts(expression: str) -> Iterator[str]:
    """What makes a matcher try again and again: long runs of a few letters, after what the expression begins with."""
    literals = re.findall(r"[A-Za-z-]{2,}", expression)
    begins = ["", *literals, " ".join(literals), "-----BEGIN A-----", "0x", '"', "{", "a.", "model.layers.0."]
    for letter in [*LETTERS, "a.", "-.", "a ", "\\.", "ab", "\\-", ". "]:
        for begin in dict.fromkeys(begins):
            yield begin + letter * (LENGTH // len(letter)) + "!"


@pytest.mark.parametrize(
    ("expression", "flags", "searches"), [pytest.param(*told, id=place) for place, *told in expressions()]
)
def test_an_expression_takes_little_time_at_any_text(expression: str | bytes, flags: int, searches: bool) -> None:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it still matched after {MOST_SECONDS} s")

    compiled = re.compile(expression, flags)
    written = expression if isinstance(expression, str) else expression.decode("latin-1")
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        for text in texts(written):
            told = text if isinstance(expression, str) else text.encode("latin-1")
            compiled.fullmatch(told)  # type: ignore[arg-type]
            compiled.match(told)  # type: ignore[arg-type]
            if searches:
                compiled.search(told)  # type: ignore[arg-type]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
