"""A device as a service of its system: systemd's units, for two users or three.

fedlora-trainer   owns state, socket and the pair that signs, reads the data, has no network
fedlora-link      owns the key that connects and Flower's files, has the network, may enter the socket's folder
fedlora-update    where releases are pinned: takes them in the night, has the network, owns their folder
"""

from __future__ import annotations

from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.fleet.units import installed_command, paths_line, word, write_units

from fedlora_client.service.config import DeviceConfig

FOLDER = Path("/etc/fedlora")  # of device.toml, certificate and key
STATE, SOCKET, GROUP = "/var/lib/fedlora-trainer", "/run/fedlora-trainer/device.sock", "fedlora-device"
_TEMPLATES = Path(__file__).parents[1] / "units"
_UNITS, _USERS = ("fedlora-trainer.service", "fedlora-link.service"), ("fedlora-device.conf",)
# Where a repository of signed releases is pinned.
_UPDATE_UNITS, _UPDATE_USERS = ("fedlora-update.service", "fedlora-update.timer"), ("fedlora-update.conf",)


def write_system(config: DeviceConfig, units: Path, users: Path) -> list[str]:
    """Write the units and the users of systemd-sysusers; returns what is to be done then.

    Raises ConfigError where the configuration has other places than the units give, or a unit is there that says
    something else.
    """
    here = config.device
    if (here.state, here.socket, here.group) != (STATE, SOCKET, GROUP):
        raise ConfigError(
            f'{config.path}: the units need device.state = "{STATE}", device.socket = "{SOCKET}" and device.group = '
            f'"{GROUP}"; set them there, or join with --system'
        )
    source = Path(config.data.source)
    words = {
        "FEDLORA": word(installed_command()),
        "CONFIG": word(config.path),
        "KEY": word(config.server.key or "/dev/null"),
        "IDENTITY": word(config.server.identity or "/dev/null"),
        "READS": paths_line("ReadOnlyPaths", [config.path.parent, source]),
        "HIDDEN": paths_line("InaccessiblePaths", [source]),
    }
    updates = bool(config.update.url)
    written = write_units(_TEMPLATES, _UNITS + _UPDATE_UNITS * updates, units, words)
    written += write_units(_TEMPLATES, _USERS + _UPDATE_USERS * updates, users, {})
    timer = " fedlora-update.timer" * updates
    return [
        *(str(path) for path in written),
        "next: systemd-sysusers",
        f"      setfacl -R -m u:fedlora-trainer:rX {source}   (or let the user fedlora-trainer read it in another way)",
        "      systemctl daemon-reload && systemctl enable --now fedlora-trainer fedlora-link" + timer,
    ]
