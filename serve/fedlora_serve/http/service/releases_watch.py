"""The folder that `fedlora update` writes, watched: what it says is in use is loaded, and swapped without a restart."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from pathlib import Path

from fedlora.errors import FedloraError, ReleaseError, UnknownAdapterError
from fedlora.release.installed import INSTALLED, read_installed, version_folder
from fedlora.release.layout import check_name
from fedlora.release.serving import Served, serving, tell_served

from fedlora_serve.adapters.store import AdapterStore

_LOOK_S = 0.5
_MOST_NAMES = 256
_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]


class ReleasesWatch:
    """Keeps a store as the folder says. A version that cannot be loaded leaves the one before, and is told there."""

    def __init__(self, folder: Path, store: AdapterStore) -> None:
        """Be the server of the folder, and load what is in use. Raises ConfigError where another one is."""
        self._folder, self._store = folder, store
        self._stamps: dict[str, _Stamp] = {}
        self._loaded: set[str] = set()
        self._stopping = threading.Event()
        self._held = ExitStack()
        self._server = self._held.enter_context(serving(folder))
        self.look()
        self._thread = threading.Thread(target=self._run, name="fedlora-releases", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Load what has changed since it was looked at last."""
        for name, stamp in self._there().items():
            if self._stamps.get(name) != stamp:
                self._stamps[name] = stamp
                self._take(name)

    def close(self) -> None:
        """Stop, and let go of the folder."""
        self._stopping.set()
        self._thread.join()
        self._held.close()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self.look()

    def _there(self) -> dict[str, _Stamp]:
        """{name: what changes when what is in use does}"""
        found: dict[str, _Stamp] = {}
        try:
            for place in self._folder.iterdir():
                if len(found) < _MOST_NAMES and (place / INSTALLED).is_file():
                    status = (place / INSTALLED).stat()
                    found[place.name] = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError as error:
            _log.warning("%s: %s", self._folder, error.strerror)
        return found

    def _take(self, name: str) -> None:
        place, told, folder = self._folder / name, "", ""
        try:
            current = read_installed(place).current
            if current is None:
                self._drop(name)
            else:
                folder = current.folder
                version = self._store.load(check_name(name), version_folder(place, current), pin=True)
                self._loaded.add(name)
                if version.release is None or version.release.digest != current.digest:
                    raise ReleaseError(f"{place}: not the release that is told to be in use; run fedlora update again")
                _log.warning("%s: version %d is in use", name, current.version)
        except (FedloraError, OSError) as error:
            told = str(error)
            _log.warning("%s: %s", name, told)
        tell_served(place, Served(server=self._server, folder=folder, error=told))

    def _drop(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.discard(name)
            try:
                self._store.unload(name)
            except UnknownAdapterError:  # over HTTP, by the operator
                return
