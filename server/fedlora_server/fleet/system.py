"""A fleet's server as a service of its system: systemd's unit, for a user of its own."""

from __future__ import annotations

from pathlib import Path

from fedlora.fleet.units import installed_command, paths_line, word, write_units

from fedlora_server.fleet.settings import FleetSettings

_TEMPLATES = Path(__file__).parents[1] / "units"


def write_system(settings: FleetSettings, units: Path, users: Path) -> list[str]:
    """Write the unit and its user; returns what is to be done then.

    Raises ConfigError where a unit is there that says something else.
    """
    folder = settings.folder.absolute()
    words = {
        "FEDLORA": word(installed_command()),
        "FLEET": word(folder),
        "WRITES": paths_line("ReadWritePaths", [folder]),
    }
    written = write_units(_TEMPLATES, ["fedlora-server.service"], units, words)
    written += write_units(_TEMPLATES, ["fedlora-server.conf"], users, {})
    return [
        *(str(path) for path in written),
        f"next: systemd-sysusers && chown -R fedlora-server: {folder}",
        "      systemctl daemon-reload && systemctl enable --now fedlora-server",
    ]
