"""docs/python.md does what it says: its blocks run one after another, with names of the packages' faces only."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.documents import ENVIRONMENT, blocks, run, write_beginning

BLOCKS = blocks("docs/python.md", "python")
# What is only long in a block is short here.
SHORTER = {'"simulation.devices": 4,': '"simulation.devices": 2,', '"train.steps": 8,': '"train.steps": 2,'}


def test_the_blocks_import_only_from_the_faces_of_the_packages() -> None:
    imports = [node for node in ast.walk(ast.parse("\n".join(BLOCKS))) if isinstance(node, ast.ImportFrom)]
    assert len({node.module for node in imports}) >= 5
    for node in imports:
        package = str(node.module)
        public = importlib.import_module(package).__all__
        assert [alias.name for alias in node.names if alias.name not in public] == [], f"not a name of {package}"


@pytest.mark.slow
def test_the_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MPLBACKEND", "agg")
    write_beginning(tmp_path / "notes.txt")
    code = "\n".join(BLOCKS)
    for long, short in SHORTER.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    output = run([sys.executable, "-c", code], tmp_path)
    assert [f"round {number}" in output for number in range(4)] == [True] * 4
    assert "held-out loss after 20 steps" in output
    assert "decoder.onnx" in output
    base, mine, federated = re.split(r"--- \w+\n", output)[1:]
    assert base != mine, "the adapter of one file changed nothing"
    assert base != federated, "the adapter of the federation changed nothing"
    assert (tmp_path / "loss.png").is_file()
