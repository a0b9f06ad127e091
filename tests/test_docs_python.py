"""docs/python.md does what it says: its blocks run one after another, with names of the packages' faces only."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_blocks_import_only_from_the_faces_of_the_packages() -> None:
    imports = [node for node in ast.walk(ast.parse("\n".join(BLOCKS))) if isinstance(node, ast.ImportFrom)]
    assert len({node.module for node in imports}) >= 5
    for node in imports:
        package = str(node.module)
        public = importlib.import_module(package).__all__
        assert [alias.name for alias in node.names if alias.name not in public] == [], f"not a name of {package}"


def test_the_blocks_run_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").symlink_to(PROJECT / "README.md")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(BLOCKS)], cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [f"round {number}" in done.stdout for number in range(4)] == [True] * 4
    assert "held-out loss after 20 steps" in done.stdout
    assert "decoder.onnx" in done.stdout
    base, mine, federated = re.split(r"--- \w+\n", done.stdout)[1:]
    assert base != mine, "the adapter of one file changed nothing"
    assert base != federated, "the adapter of the federation changed nothing"
    assert (tmp_path / "loss.png").is_file()
