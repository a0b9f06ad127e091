"""A SuperNode that has given up is a process that has ended, whatever threads it leaves."""

from __future__ import annotations

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
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys, threading, time, types\ndef flower_supernode():\n"
        "    assert sys.argv[1:] == ['--port', '1']\n"
        f"    threading.Thread(target=time.sleep, args=(600,)).start()\n    {statement}\n"
        "cli = sys.modules['flwr.supernode.cli'] = types.ModuleType('cli')\ncli.flower_supernode = flower_supernode\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [
        sys.executable,
        str(program),
        str(supernode_process.__file__),
        str(tmp_path / "node"),
        "flower-supernode",
    ]
    done = subprocess.run([*command, "--port", "1"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
