"""docs/python.md does what it says: its blocks run one after another, with names of the packages' faces only."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.documents import ENVIRONMENT, PROJECT, blocks, run

BLOCKS = blocks("docs/python.md", "python")
# What is only long in a block is short here.
LONG, SHORT = '"simulation.devices": 4,', '"simulation.devices": 2,'


def test_the_blocks_import_only_from_the_faces_of_the_packages() -> None:
    imports = [node for node in ast.walk(ast.parse("\n".join(BLOCKS))) if isinstance(node, ast.ImportFrom)]
    assert len({node.module for node in imports}) >= 5
    for node in imports:
        package = str(node.module)
        public = importlib.import_module(package).__all__
        assert [alias.name for alias in node.names if alias.name not in public] == [], f"not a name of {package}"


def test_the_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MPLBACKEND", "agg")
    (tmp_path / "notes.txt").symlink_to(PROJECT / "README.md")
    code = "\n".join(BLOCKS)
    assert code.count(LONG) == 1
    output = run([sys.executable, "-c", code.replace(LONG, SHORT)], tmp_path)
    assert [f"round {number}" in output for number in range(4)] == [True] * 4
    assert "held-out loss after 20 steps" in output
    assert "decoder.onnx" in output
    base, mine, federated = re.split(r"--- \w+\n", output)[1:]
    assert base != mine, "the adapter of one file changed nothing"
    assert base != federated, "the adapter of the federation changed nothing"
    assert (tmp_path / "loss.png").is_file()
