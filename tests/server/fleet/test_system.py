"""A fleet's server as a service of its system."""

from __future__ import annotations

from pathlib import Path

from fedlora_server.fleet.settings import FleetSettings
from fedlora_server.fleet.system import write_system


def test_the_unit_of_a_server_runs_its_fleet_and_writes_nowhere_else(tmp_path: Path, fleet: FleetSettings) -> None:
    said = write_system(fleet, tmp_path / "units", tmp_path / "users")
    unit = (tmp_path / "units" / "fedlora-server.service").read_text()
    assert f"server run {fleet.folder}\n" in unit and f'ReadWritePaths="-{fleet.folder}"\n' in unit
    assert any("chown -R fedlora-server:" in line for line in said)
