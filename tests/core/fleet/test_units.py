"""Units: what systemd itself says of them, and what a machine's names do to them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from fedlora.errors import ConfigError
from fedlora.fleet.units import installed_command, paths_line, word, write_units
from hypothesis import given
from hypothesis import strategies as st

PROJECT = Path(__file__).parents[3]
ROLES = {
    "client/fedlora_client": (
        "fedlora-trainer.service",
        "fedlora-link.service",
        "fedlora-update.service",
        "fedlora-update.timer",
    ),
    "server/fedlora_server": ("fedlora-server.service",),
}
WORDS = {
    "FEDLORA": "/usr/bin/true",
    "CONFIG": "/etc/fedlora/device.toml",
    "KEY": "/etc/fedlora/device.key",
    "IDENTITY": "/etc/fedlora/identity.key",
    "FLEET": "/srv/fleet",
    "READS": paths_line("ReadOnlyPaths", [Path("/etc/fedlora")]),
    "HIDDEN": paths_line("InaccessiblePaths", [Path("/srv/data")]),
    "WRITES": paths_line("ReadWritePaths", [Path("/srv/fleet")]),
}
MOST_EXPOSED = 2.5

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    return [
        unit for role, names in ROLES.items() for unit in write_units(PROJECT / role / "units", names, tmp_path, WORDS)
    ]


@needs_systemd
def test_systemd_finds_no_fault_in_the_units(units: list[Path]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_says_that_little_of_the_machine_is_exposed_to_each(units: list[Path]) -> None:
    for unit in (unit for unit in units if unit.suffix == ".service"):
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=100", str(unit)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        exposure = float(done.stdout.rsplit("exposure level for", 1)[1].split(":")[1].split()[0])
        assert exposure <= MOST_EXPOSED, (unit.name, exposure)


def test_the_trainer_has_no_network_and_the_link_none_of_its_data(units: list[Path]) -> None:
    trainer, link, *_ = (unit.read_text() for unit in units)
    assert "PrivateNetwork=yes" in trainer and "RestrictAddressFamilies=AF_UNIX\n" in trainer
    assert 'InaccessiblePaths="-/srv/data"' in link and "-/var/lib/fedlora-trainer" in link


def test_a_unit_that_somebody_changed_is_not_written_over(tmp_path: Path) -> None:
    templates, names = PROJECT / "server/fedlora_server/units", ROLES["server/fedlora_server"]
    (unit,) = write_units(templates, names, tmp_path, WORDS)
    write_units(templates, names, tmp_path, WORDS)
    unit.write_text(unit.read_text() + "# mine\n")
    with pytest.raises(ConfigError, match="got another"):
        write_units(templates, names, tmp_path, WORDS)
    assert unit.read_text().endswith("# mine\n")


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1))
def test_a_word_is_one_word_again_after_systemd_took_it_apart(text: str) -> None:
    # systemd's quoting within double quotes is the shell's, but for % and $, which it doubles.
    (again,) = shlex.split(word(text))
    assert again.replace("$$", "$").replace("%%", "%") == text


def test_what_fits_into_no_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="control character"):
        word("/data\nExecStartPre=/bin/sh")
    with pytest.raises(ConfigError, match="control character"):
        paths_line("ReadOnlyPaths", [Path("/data\n[Service]")])


def test_the_command_that_a_unit_starts_is_the_installed_one() -> None:
    assert installed_command().name == "fedlora" and installed_command().is_absolute()
