"""A SuperNode that has given up is a process that has ended, whatever threads it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fedlora_client.supervision import supernode_process

ENDS = {
    "it returns": ("pass", 1, "has given up"),
    "it leaves": ("sys.exit(7)", 7, ""),
    "it fails": ("raise ValueError('no key')", 1, "no key"),
}


@pytest.mark.parametrize("ends", ENDS)
def test_it_ends_with_its_main_thread_though_another_lives_on(tmp_path: Path, ends: str) -> None:
    statement, code, told = ENDS[ends]
    module = tmp_path / "flwr" / "supernode" / "cli.py"
    module.parent.mkdir(parents=True)
    for package in (module.parents[1], module.parent):
        (package / "__init__.py").write_text("")
    module.write_text(
        "import sys, threading, time\ndef flower_supernode():\n    assert sys.argv[1:] == ['--port', '1']\n"
        f"    threading.Thread(target=time.sleep, args=(600,)).start()\n    {statement}\n"
    )
    command = [sys.executable, "-P", str(supernode_process.__file__), "flower-supernode", "--port", "1"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
