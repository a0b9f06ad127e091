"""An app that the fleet's key did not sign: no device runs it, whoever starts it, and the fleet's own run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fleets import LONGEST_S, Fleet, until

pytestmark = pytest.mark.faults


def test_devices_answer_an_app_without_the_fleets_signature_with_an_error_and_run_nothing(
    fleet: Fleet, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    app, output = fleet.folder / "stranger", fleet.folder / "stranger-run"
    shutil.rmtree(app, ignore_errors=True)
    shutil.copytree(fleet.folder / "fleet" / "app", app, ignore=shutil.ignore_patterns("signing_key*"))
    pyproject = app / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + "\n# changed\n")
    fleet.begin(server__rounds=50)
    fleet.until_training(1)
    config = {
        "name": "stranger",
        "base": str(fleet.base.directory),
        "output": str(output),
        "server.rounds": 1,
        "server.evaluate": False,
        "train.sequence_length": 16,
    }
    started(fleet, app, " ".join(f"{key}={json.dumps(value)}" for key, value in config.items()))
    metrics = output / "metrics.jsonl"
    until(lambda: metrics.is_file() and '"round": 1' in metrics.read_text(), "the stranger's run has no round")
    line = json.loads(metrics.read_text().splitlines()[-1])
    until(lambda: fleet.committed >= 3, "the fleet's own run does not go on")
    assert fleet.server is not None
    fleet.server.end()
    assert (line["replies"], line["excluded"]) == (0, {"device-error": 4})
    logs = [(fleet.folder / name / "own" / "state" / "log" / "link.log").read_text() for name in fleet.names]
    assert all("could not verify the FAB" in log or "FAB could not be verified" in log for log in logs)
    answers = [answer for name in fleet.names for answer in fleet.status(name)["rounds"]]
    assert not any(answer.get("run") == "stranger" for answer in answers)
    assert [line["replies"] for line in fleet.rounds()] == [4] * len(fleet.rounds())
    assert fleet.digest(2) == undisturbed
    row("an app that the fleet's key did not sign", f"{line['excluded']}; the fleet's own run: {undisturbed:.16}")


def started(fleet: Fleet, app: Path, config: str) -> None:
    """As whoever reaches SuperLink's Control API starts a run: with Flower's own command."""
    flwr = Path(sys.executable).with_name("flwr")
    environment = os.environ | {
        "FLWR_HOME": str(fleet.folder / "fleet" / "flower"), "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }  # fmt: skip
    result = subprocess.run(
        [str(flwr), "run", str(app), "--run-config", config], env=environment, capture_output=True, text=True,
        timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
