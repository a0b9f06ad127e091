"""Every refusal of the project, collected from its sources, has one form: where, what came, what was expected or to do.

A sentence that only hands on another error's is that one's matter, and so are the reasons by which a server counts a
device's answer: whoever reads them did not write what is refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fedlora.errors as errors
import fedlora_serve.errors as serve_errors
import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "server", "client", "export", "serve", "simulations")
KINDS = {
    name
    for module in (errors, serve_errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, errors.FedloraError)
} | {"ApiError"}
# A refused update is counted by the server, and goes to nobody who could act on it; without a library torch does it.
COUNTED = {"UpdateError", "BuildError"}
GUESSES = re.compile(
    r"\b(malformed|perhaps|probably|maybe|seems?|might be|another family|something went wrong|unknown error|corrupt)\b",
    re.I,
)
TELLS = re.compile(
    r"; |_what_else\(|"  # the latter gives the rest of the sentence
    r": (set|give|use|copy|pass|save|make|export|pack|remove|raise|lower|leave|install|name|take|train|shorten|try|is )"
    r"|expected|only|at most|at least|must|not supported|does not exist|pip install|is read\b|are read\b|wait|takes"
)
HANDED_ON = re.compile(r"^((line |record |it is |got )?\{[^}]*\}[:;,]? ?)*$")
# vLLM's own words, which its clients read; and one file of a page that a browser asks for.
OTHERS_WORDS = {"serve/fedlora_serve/http/api/adapters.py", "serve/fedlora_serve/http/api/page.py"}


@dataclass(frozen=True)
class Refusal:
    kind: str
    where: str
    text: str


def written(node: ast.expr) -> str:
    """A message as it stands in the source, {expression} for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(written, parts))
        case ast.FormattedValue(value=value):
            return "{" + ast.unparse(value).replace("{", "").replace("}", "") + "}"
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return written(left) + written(right)
    return "{" + ast.unparse(node).replace("{", "").replace("}", "") + "}"


@cache
def refusals() -> tuple[Refusal, ...]:
    return tuple(_refusals())


def _refusals() -> Iterator[Refusal]:
    for package in PACKAGES:
        for file in sorted((PROJECT / package).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if "raise" in text else ():
                if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                    continue
                kind = ast.unparse(node.exc.func).rpartition(".")[2]
                place = 1 if kind in ("ApiError", "UpdateError", "PolicyError") else 0  # after a status, a reason
                if kind in KINDS and len(node.exc.args) > place:
                    where = f"{file.relative_to(PROJECT).as_posix()}:{node.lineno}"
                    yield Refusal(kind, where, written(node.exc.args[place]))


def test_they_are_found() -> None:
    assert len(refusals()) > 400
    assert {refusal.kind for refusal in refusals()} >= {
        "ConfigError",
        "DataError",
        "PackError",
        "AdapterError",
        "ApiError",
    }


@pytest.mark.parametrize(
    ("text", "is_guess", "tells"),
    [
        ("x: the file is malformed", True, False),
        ("{path}: no such file", False, False),
        ("{path}: rank 3; expected 4", False, True),
    ],
)
def test_the_form_is_looked_at(text: str, is_guess: bool, tells: bool) -> None:
    assert bool(GUESSES.search(text)) is is_guess
    assert bool(TELLS.search(text)) is tells


def test_none_guesses() -> None:
    assert [refusal for refusal in refusals() if GUESSES.search(refusal.text)] == []


def test_each_is_one_line_without_a_full_stop() -> None:
    own = [refusal for refusal in refusals() if refusal.where.rpartition(":")[0] not in OTHERS_WORDS]
    assert [refusal for refusal in own if "\n" in refusal.text or refusal.text.endswith((".", "!", " "))] == []


def test_each_tells_what_was_expected_or_what_to_do() -> None:
    silent = [
        refusal
        for refusal in refusals()
        if refusal.kind not in COUNTED
        and refusal.where.rpartition(":")[0] not in OTHERS_WORDS
        and not HANDED_ON.match(refusal.text)
        and not TELLS.search(refusal.text)
    ]
    assert silent == [], "\n".join(f"{refusal.where}: {refusal.kind}: {refusal.text}" for refusal in silent)
