"""The power is cut at each write of an update: what is in use is whole, the old or the new, and the next update goes on."""

from __future__ import annotations

import shutil

from fedlora.release.folder import read_adapter_release
from fedlora.release.installed import VERSIONS, version_folder

from tests.client.updating.conftest import KEY, Fleet
from tests.tiny.power import power


def in_use(fleet: Fleet) -> int:
    """The version in use, all of whose files are as they were signed."""
    current = fleet.installed.current
    assert current is not None
    folder = version_folder(fleet.settings.place, current)
    release = read_adapter_release(folder, [KEY.public])
    assert release.manifest.version == current.version
    return current.version


def test_whenever_the_power_is_cut_the_device_has_a_whole_version_and_goes_on(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    fleet.publish(2)
    before = fleet.folder / "before"
    shutil.copytree(fleet.settings.folder, before, symlinks=True)
    with power(fleet.settings.folder) as counted:
        fleet.update()
    assert counted.writes > 30
    seen = set()
    for cut_at in range(counted.writes):
        shutil.rmtree(fleet.settings.folder)
        shutil.copytree(before, fleet.settings.folder, symlinks=True)
        with power(fleet.settings.folder, cut_at):
            fleet.update()
        seen.add((in_use(fleet), fleet.installed.is_confirmed))
        assert fleet.update().result in ("installed", "unchanged")
        assert (in_use(fleet), fleet.installed.is_confirmed) == (2, True)
        there = {path.name.partition("-")[0] for path in (fleet.settings.place / VERSIONS).iterdir()}
        assert there <= {"1", "2"}, cut_at
        assert not list(fleet.settings.folder.rglob("*.temp-*")), cut_at
    assert seen == {(1, True), (2, False), (2, True)}


def test_a_first_update_that_is_cut_off_leaves_nothing_in_use_or_the_release(fleet: Fleet) -> None:
    fleet.publish(1)
    with power(fleet.settings.folder) as counted:
        fleet.update()
    for cut_at in range(0, counted.writes, 3):
        shutil.rmtree(fleet.settings.folder)
        with power(fleet.settings.folder, cut_at):
            fleet.update()
        assert fleet.installed.current is None or in_use(fleet) == 1
        assert fleet.update().result in ("installed", "unchanged")
        assert in_use(fleet) == 1
