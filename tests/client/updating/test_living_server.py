"""An update beside a real `fedlora serve`, which is killed while the new version is on trial."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedlora.release.serving import read_served
from fedlora_client.updating.update import update
from fedlora_export.export import export_base

from tests.client.updating.conftest import Fleet

pytestmark = pytest.mark.integration


@contextmanager
def a_service(fleet: Fleet, model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable, "-c", "from fedlora.cli import main; main()", "serve", str(model), "--port", "0", "--releases",
        str(fleet.settings.folder), "--require-signed", str(fleet.folder / "release.pub"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, line.split(" on ", 1)[1].split()[0]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def released(url: str) -> int | None:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        models = {model["id"]: model for model in json.load(answer)["data"]}
    return models["tone"]["release"]["version"] if "tone" in models else None


def test_a_service_swaps_lives_and_dies(fleet: Fleet) -> None:
    model = fleet.folder / "model"
    export_base(fleet.base, model, profiles=("compat", "rows"))
    fleet.publish(1)
    device = fleet.with_settings(watch_s=1.0)
    with a_service(fleet, model) as (process, url):
        assert released(url) is None
        assert update(device.settings).result == "installed"
        assert released(url) == 1
        fleet.publish(2)
        assert update(device.settings).result == "installed"
        assert released(url) == 2
        fleet.publish(3)

        def kill_on_trial() -> None:
            end = time.monotonic() + 60
            while (now := read_served(fleet.settings.place)) is None or not now.folder.startswith("3-"):
                assert time.monotonic() < end
                time.sleep(0.05)
            process.kill()

        killer = threading.Thread(target=kill_on_trial)
        killer.start()
        attempt = update(fleet.with_settings(watch_s=60.0).settings)
        killer.join()
    assert attempt.result == "refused"
    assert "the server died" in attempt.told  # as it loaded the version, or on trial: it is killed in between
    assert fleet.in_use == 2
    with a_service(fleet, model) as (_, url):  # started again, it serves the one before
        assert released(url) == 2
        assert update(device.settings).result == "unchanged"
        assert released(url) == 2
