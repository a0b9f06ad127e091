"""What `fedlora update` puts into use is served without a restart; what cannot be is told, and the one before stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.identity.keys import SigningKey
from fedlora.release.folder import read_adapter_release
from fedlora.release.installed import Installed, InstalledVersion, read_installed, version_folder, write_installed
from fedlora.release.serving import is_served, read_served
from fedlora_serve.adapters.signed import SignedNames
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.service.releases_watch import ReleasesWatch

from tests.tiny.releases import write_release

KEY = SigningKey.generate()


def put(releases: Path, base: BasePack, version: int, key: SigningKey = KEY) -> InstalledVersion:
    """A version of `tone`, in use from now on."""
    made = releases.parent / f"made-{version}"
    write_release(made, base, key, seed=version, version=version)
    current = InstalledVersion.of(read_adapter_release(made, [key.public]))
    shutil.copytree(made, version_folder(releases / "tone", current))
    write_installed(releases / "tone", Installed(newest=version, newest_digest=current.digest, current=current))
    return current


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def store(base: BasePack) -> AdapterStore:
    return AdapterStore(base, budget_bytes=64 << 20, signed=SignedNames([("tone", KEY.public)]))


def test_what_is_in_use_is_served_and_swapped(base: BasePack, store: AdapterStore, tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    first = put(releases, base, 1)
    watch = ReleasesWatch(releases, store)
    try:
        served = read_served(releases / "tone")
        assert served is not None and (served.folder, served.error) == (first.folder, "")
        before = store.lease("tone")
        assert before.version.release is not None and before.version.release.version == 1
        second = put(releases, base, 2)
        until(lambda: (now := read_served(releases / "tone")) is not None and now.folder == second.folder)
        after = store.lease("tone")
        assert after.version.release is not None and after.version.release.version == 2
        assert before.version.digest != after.version.digest  # who began with the old one ends with it
        for lease in (before, after):
            lease.release()
        installed = read_installed(releases / "tone")
        write_installed(releases / "tone", replace(installed, current=None))
        until(lambda: store.status("tone") is None)
    finally:
        watch.close()
    assert not is_served(releases)


def test_a_version_that_cannot_be_served_leaves_the_one_before(
    base: BasePack, store: AdapterStore, tmp_path: Path
) -> None:
    releases = tmp_path / "releases"
    put(releases, base, 1)
    watch = ReleasesWatch(releases, store)
    try:
        wrong = put(releases, base, 2, SigningKey.generate())
        until(lambda: (now := read_served(releases / "tone")) is not None and now.folder == wrong.folder)
        served = read_served(releases / "tone")
        assert served is not None and "signed by" in served.error
        lease = store.lease("tone")
        assert lease.version.release is not None and lease.version.release.version == 1
        lease.release()
    finally:
        watch.close()


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_folder_that_says_nothing_sound_stops_no_service(
    base: BasePack, store: AdapterStore, tmp_path: Path, content: str
) -> None:
    put(tmp_path / "releases", base, 1)
    (tmp_path / "releases" / "tone" / "installed.json").write_text(content)
    (tmp_path / "releases" / "tоne").mkdir()  # noqa: RUF001  with a Cyrillic letter
    shutil.copy(tmp_path / "releases" / "tone" / "installed.json", tmp_path / "releases" / "tоne")  # noqa: RUF001
    watch = ReleasesWatch(tmp_path / "releases", store)
    watch.close()
    assert store.list() == ()
    told = read_served(tmp_path / "releases" / "tone")
    assert told is not None and told.error


def test_a_folder_has_one_server(base: BasePack, store: AdapterStore, tmp_path: Path) -> None:
    watch = ReleasesWatch(tmp_path / "releases", store)
    try:
        with pytest.raises(ConfigError, match="another service"):
            ReleasesWatch(tmp_path / "releases", store)
    finally:
        watch.close()
