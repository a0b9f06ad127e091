"""A repository with a release of a tiny base, a web server that gives it out, and a device that updates from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.identity.keys import SigningKey
from fedlora.release.channels import Channel
from fedlora.release.installed import Installed, read_installed, version_folder
from fedlora_client.updating.settings import UpdateSettings
from fedlora_client.updating.update import Attempt, update
from fedlora_server.distribution.repository import Repository

from tests.tiny.releases import write_release
from tests.tiny.static_server import StaticServer, given_out

KEY = SigningKey.generate()
FAR = {"issued": "2020-01-01T00:00:00Z", "expires": "2099-01-01T00:00:00Z"}


@dataclass
class Fleet:
    """One repository and one device."""

    folder: Path
    base: BasePack
    repository: Repository
    settings: UpdateSettings
    told: list[str] = field(default_factory=list, kw_only=True)  # by what publishes
    server: StaticServer
    canaries: list[Path] = field(default_factory=list)

    def publish(
        self, version: int, *, channel: Channel = "stable", key: SigningKey = KEY, now: datetime | None = None,
        spoil: Callable[[Path], None] | None = None, **changed: Any,
    ) -> Path:  # fmt: skip
        """Make a release of that version, with an adapter of its own, and give it out."""
        made = self.folder / f"release-{version}-{channel}"
        write_release(made, self.base, key, seed=version, **{"version": version, **FAR, **changed})
        self.repository.publish(made, channel, [key.public], now, self.told.append)
        if spoil:
            spoil(self.repository.path)
        return made

    def update(self, **options: Any) -> Attempt:
        return update(self.settings, **{"try_canary": self._try, "watch": lambda *_: "", **options})

    def _try(self, folder: Path, *_: object) -> str:
        self.canaries.append(folder)
        return ""

    @property
    def installed(self) -> Installed:
        return read_installed(self.settings.place)

    @property
    def in_use(self) -> int:
        """The version that a server would serve; 0: none."""
        current = self.installed.current
        if current is None:
            return 0
        assert (version_folder(self.settings.place, current) / "adapter" / "adapter_model.safetensors").is_file()
        return current.version

    def with_settings(self, **changed: Any) -> Fleet:
        return replace(self, settings=replace(self.settings, **changed))


@contextmanager
def fleet_in(folder: Path, base: BasePack) -> Iterator[Fleet]:
    """What lies in a folder, given out as long as the block runs."""
    repository = Repository(folder / "repo", folder / "keys")
    with given_out(repository.path) as server:
        settings = UpdateSettings(
            url=server.url, name="tone", root=folder / "pinned.json", keys=(folder / "release.pub",),
            base=str(base.directory), model=str(base.directory), folder=folder / "releases", timeout_s=20, watch_s=0,
        )  # fmt: skip
        yield Fleet(folder, base, repository, settings, server)


@pytest.fixture(scope="session")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository that gives nothing out yet, its keys and what a device pins: to be copied."""
    folder = tmp_path_factory.mktemp("fleet")
    root = Repository(folder / "repo", folder / "keys").init()
    (folder / "pinned.json").write_bytes(root.read_bytes())
    KEY.public.write(folder / "release.pub")
    return folder


@pytest.fixture
def fleet(tmp_path: Path, new_repository: Path, base: BasePack) -> Iterator[Fleet]:
    shutil.copytree(new_repository, tmp_path, symlinks=True, dirs_exist_ok=True)
    with fleet_in(tmp_path, base) as made:
        yield made
