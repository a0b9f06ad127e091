"""A device as a service of its system: what is written, and that systemd takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.errors import ConfigError
from fedlora.fleet.bundle import write_bundle
from fedlora_client.commands.device import device
from fedlora_client.service.config import read_device
from fedlora_client.service.joining import join
from fedlora_client.service.system import write_system

from tests.tiny.bundles import bundle


@pytest.fixture
def given(tmp_path: Path) -> Path:
    write_bundle(bundle(), tmp_path / "kitchen.json")
    return tmp_path / "kitchen.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "my notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Notes of a day.\n" * 20)
    return folder


def test_the_units_of_a_device_name_its_configuration_its_data_and_its_key(
    tmp_path: Path, given: Path, data: Path
) -> None:
    config = read_device(join(given, tmp_path / "etc", base="nano", data=data, is_system=True))
    said = write_system(config, tmp_path / "units", tmp_path / "users")
    trainer, link = ((tmp_path / "units" / f"fedlora-{name}.service").read_text() for name in ("trainer", "link"))
    assert f"--only trainer --config {config.path}" in trainer
    assert f'ReadOnlyPaths="-{config.path.parent}" "-{data}"' in trainer
    assert f'InaccessiblePaths="-{data}"' in link and f"chown fedlora-link: {config.path.parent}/device.key" in link
    assert "@" not in "".join(line for line in (trainer + link).splitlines() if not line.startswith("SystemCall"))
    assert "fedlora-trainer" in (tmp_path / "users" / "fedlora-device.conf").read_text()
    assert str(tmp_path / "units" / "fedlora-link.service") in said


def test_a_device_that_follows_releases_gets_a_timer(tmp_path: Path, given: Path, data: Path) -> None:
    path = join(given, tmp_path / "etc", base="nano", data=data, is_system=True)
    path.write_text(path.read_text() + '\n[update]\nurl = "https://x"\nname = "tone"\nroot = "r"\nkeys = ["k"]\n')
    said = write_system(read_device(path), tmp_path / "units", tmp_path / "users")
    service = (tmp_path / "units" / "fedlora-update.service").read_text()
    assert f"update --config {path} --folder /var/lib/fedlora-update" in service
    assert f'InaccessiblePaths="-{data}"' in service
    assert "OnCalendar=" in (tmp_path / "units" / "fedlora-update.timer").read_text()
    assert "fedlora-update" in (tmp_path / "users" / "fedlora-update.conf").read_text()
    assert "fedlora-update.timer" in said[-1]


def test_a_device_that_has_its_files_elsewhere_gets_no_units(tmp_path: Path, given: Path, data: Path) -> None:
    config = read_device(join(given, tmp_path / "mine", base="nano", data=data))
    with pytest.raises(ConfigError, match="join with --system"):
        write_system(config, tmp_path / "units", tmp_path / "users")
    assert not (tmp_path / "units").exists()


def test_another_state_is_for_a_part_that_another_user_runs(tmp_path: Path, given: Path, data: Path) -> None:
    path = join(given, tmp_path / "mine", base="nano", data=data)
    assert read_device(path).with_state(tmp_path / "link").state == tmp_path / "link"
    done = CliRunner().invoke(device, ["run", "--config", str(path), "--state", str(tmp_path / "other")])
    assert isinstance(done.exception, ConfigError) and "--only link" in str(done.exception)
