"""The ten commands of docs/deployment.md, as they stand there, in one shell: a fleet over TLS, text from its adapter."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fedlora.identity.audit import audited
from fedlora.identity.keys import PublicKey

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[1]
LONGEST_S = 900.0  # on a busy machine; two minutes on an idle one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_ten_commands_end_with_text_from_the_fleets_adapter(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", (PROJECT / "docs" / "deployment.md").read_text("utf-8"), re.DOTALL)
    for name, file in (("kitchen", "README.md"), ("cellar", "CHANGELOG.md")):
        (tmp_path / "notes" / name).mkdir(parents=True)
        (tmp_path / "notes" / name / "notes.txt").write_text((PROJECT / file).read_text("utf-8")[:20_000], "utf-8")
    # Two fleets may be on this machine, so one word is added: a port that is free. What the page says of the end follows.
    commands = commands.replace("--host localhost", f"--host localhost --port {free_port()}")
    with subprocess.Popen(
        ["bash", "-emc", f"{commands}\nkill %1 %2\nwait"], cwd=tmp_path, start_new_session=True, text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as shell:  # fmt: skip
        try:
            told, errors = shell.communicate(timeout=LONGEST_S)
        finally:
            shell.send_signal(signal.SIGTERM)
    assert shell.returncode in (0, 128 + signal.SIGTERM), errors[-3000:]  # that of the last device to end
    (adapter,) = re.findall(r"^the run is complete: (.*)$", told, re.MULTILINE)
    assert Path(adapter).is_relative_to(tmp_path / "fleet" / "runs")
    assert re.findall(r"^round 2 of 2, 2 of 2 devices", told, re.MULTILINE)
    assert told.rstrip().rpartition("\n")[2]
    assert "The kitchen" in told.partition(adapter)[2]
    assert "Traceback" not in told + errors
    server = PublicKey.read(tmp_path / "fleet" / "identity" / "server.pub")
    gave = [line.split()[0] for line in audited(Path(adapter).parents[2], server) if " (key " in line]
    assert gave == ["cellar", "kitchen"] * 2  # each of which its device service has signed
    devices = [tmp_path / name / "state" / "processes.json" for name in ("kitchen", "cellar")]
    assert [path.read_text("utf-8").strip() for path in devices] == ["{}", "{}"]
