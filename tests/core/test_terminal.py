"""What strangers wrote is shown, and not obeyed."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from fedlora.terminal import Terminal, warning
from rich.table import Table

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "server", "client", "export", "serve", "simulations")


@pytest.mark.parametrize(
    "text", ["[/b]", "[red]x", "[link=x]y[/link]", "\x1b[31mred", "\x1b]0;title\x07", "a\rb", "\u202eb"]
)
def test_a_name_is_shown_as_it_stands(text: str) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=False, width=200)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    terminal.print(f"name {text}", soft_wrap=True)
    terminal.print(warning(f"name {text}"), soft_wrap=True)
    terminal.print(table)
    shown = text if text.isprintable() else repr(text)[1:-1]
    assert file.getvalue().count(shown) == 5
    assert file.getvalue().replace("\n", "").isprintable()


def test_a_text_is_one_line() -> None:
    file = io.StringIO()
    Terminal(file=file).print("fields that are not learned: a\nerror: b", soft_wrap=True)
    assert file.getvalue() == "fields that are not learned: a\\nerror: b\n"


def test_every_command_writes_to_a_terminal_of_ours() -> None:
    for package in PACKAGES:
        for path in (PROJECT / package).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            made = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "Console"]
            assert not made, (
                f"{path}, line {made[0]}: Terminal shows what strangers wrote as it stands, Console does not"
            )
