"""The commands of docs/releases.md: a device swaps a release in while it serves, and refuses a rollback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fedlora.base.pack import open_pack
from fedlora_export.export import export_base

from tests.tiny.releases import committed_run

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[1]
TEXT = (PROJECT / "docs" / "releases.md").read_text("utf-8")
FIRST, SECOND = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
LONGEST_S = 600.0
# What the page says of the service is asked of it: who answers, in which version.
ASK = 'curl -sS -D - -d \'{{"model": "tone", "prompt": "The", "max_tokens": 1}}\' -H \'Content-Type: application/json\' http://127.0.0.1:{}/v1/completions'


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_at_most_eight_commands_two_of_them_on_the_device() -> None:
    commands = FIRST.strip().splitlines()
    assert len(commands) <= 8
    assert [line.split()[1] for line in commands[-2:]] == ["serve", "update"]


def test_a_device_swaps_a_release_in_and_refuses_a_rollback(tmp_path: Path) -> None:
    base = open_pack("nano")
    committed_run(tmp_path / "run", base)
    export_base(base, tmp_path / "model", profiles=("compat", "kernel"))
    (example,) = re.findall(r'`(\{"texts".*?\})`', TEXT)
    assert json.loads(example)["texts"]
    (tmp_path / "canary.json").write_text(example.replace("12.0", "50.0"))  # the run's adapters are random
    ports = {"8440": free_port(), "8441": free_port()}
    first, second, ask = FIRST, SECOND, ASK.format(ports["8441"])
    for told, free in ports.items():
        first, second = first.replace(told, free), second.replace(told, free)
    *before, update = first.strip().splitlines()
    update += " --watch 2"
    waits = f"until curl -sf http://127.0.0.1:{ports['8441']}/health > /dev/null; do sleep 0.2; done"
    first_answer, second_answer = f"echo ANSWER; {ask}; echo", f"echo ANSWER; {ask}; echo"
    steps = [
        *before,
        waits,
        update,
        first_answer,
        f"UPDATE='{update}'",
        *second.strip().splitlines()[:-1],
        second_answer,
    ]
    last = ["set +e", "$UPDATE", "echo STATUS $?", f"{update.replace(' --watch 2', '')} --status", "kill %1 %2", "wait"]
    with subprocess.Popen(
        ["bash", "-emc", "\n".join([*steps, *last])], cwd=tmp_path, start_new_session=True, text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as shell:  # fmt: skip
        try:
            told, errors = shell.communicate(timeout=LONGEST_S)
        finally:
            shell.send_signal(signal.SIGTERM)
    assert "tone 1 is in use\n" in told, errors[-3000:]
    assert "tone 2 is in use\n" in told, errors[-3000:]
    assert re.findall(r"^x-adapter-release: (.*)\r?$", told, re.MULTILINE) == ["tone 1", "tone 2"]
    assert "STATUS 1\n" in told
    (shown,) = re.findall(r"^    (error: .*)$", TEXT, re.MULTILINE)
    assert shown.replace("8440", ports["8440"]) in errors
    assert re.search(r"^in use     2, signed by ", told, re.MULTILINE)
    assert "Traceback" not in told + errors
