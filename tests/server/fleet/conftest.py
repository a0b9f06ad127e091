"""A fleet's folder, as `fedlora server init` makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora_server.fleet.making import make_fleet
from fedlora_server.fleet.settings import FleetSettings


@pytest.fixture
def fleet(tmp_path: Path) -> FleetSettings:
    settings = FleetSettings(
        folder=tmp_path / "fleet",
        host="fleet.example.org",
        names=("10.0.0.7",),
        listen_port=8444,
        run={"name": "fleet"},
    )
    make_fleet(settings)
    return settings
