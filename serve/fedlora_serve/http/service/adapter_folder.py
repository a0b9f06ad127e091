"""The folder that adapters are loaded from over HTTP, and nothing outside of it.

A path from a request is walked one component at a time, each opened relative to the one before and never through a link
(openat with O_NOFOLLOW), so that what was checked is what is read, whatever is renamed meanwhile. The files are copied
through these descriptors into a private folder, which the store then reads, and reads again after an eviction: a file that
somebody changes later is another adapter, and has to be loaded to count.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fedlora.data.chat_settings import MAX_SETTINGS_BYTES
from fedlora.errors import AdapterError, AdapterTooLargeError, ConfigError
from fedlora.exported.sidecar import MAX_BYTES as MAX_SIDECAR_BYTES
from fedlora.exported.sidecar import sidecar_of
from fedlora.files.temporary import OwnFolder
from fedlora.peft.configuration import MAX_CONFIG_BYTES
from fedlora.peft.layout import COMPANIONS, CONFIG, WEIGHTS
from fedlora.peft.missing import told_instead
from fedlora.release.layout import ADAPTER, ENVELOPE
from fedlora.release.sealed import MAX_ENVELOPE_BYTES

_MAX_DEPTH, _BLOCK_BYTES = 16, 1 << 20
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+=-]{0,127}")
# O_NONBLOCK: opening a pipe that nobody writes to must not wait.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


MAX_FILE_BYTES = (2 << 30) + (8 << 20)  # what is read at most with the default --adapter-memory
MostBytes = Callable[[bool], int]  # of the values in a PEFT directory (True), or of an .onnx_adapter file (False)


class NoSuchAdapterError(AdapterError):
    """A path below the folder where nothing is."""


class AdapterFolder:
    """Copies adapters out of one folder, into one that is gone when the process is."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where it is no folder that can be read. A link to one is the operator's to make."""
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
            raise ConfigError(f"--adapter-folder {folder}: no folder that can be read; create it, or name another")
        self._folder = folder.resolve()
        self._copies = OwnFolder("adapters")
        self._private = self._copies.path.resolve()
        self._numbers = itertools.count(1)
        self._kept: dict[str, Path] = {}  # {adapter's name: the copy that it is read from}
        self.most_bytes: MostBytes = lambda is_directory: MAX_FILE_BYTES  # what whoever reads the copies takes

    def copy(self, path: str) -> Path:
        """A private copy of what is at `path` below the folder: a PEFT directory, an .onnx_adapter file, or a release.

        What is larger than its reader takes is not copied. Raises ConfigError for a path that is not taken,
        NoSuchAdapterError, AdapterTooLargeError, and AdapterError for what is no plain file.
        """
        components = _components(path)
        target = self._private.joinpath(str(next(self._numbers)), *components)
        target.parent.mkdir(parents=True)
        try:
            with _opened(self._folder, components[:-1]) as parent:
                name = components[-1]
                if name.endswith(".onnx_adapter"):
                    _copy(parent, name, target, path, self.most_bytes(False))
                    manifest = sidecar_of(target)
                    with contextlib.suppress(FileNotFoundError):  # a file of another tool has none
                        _copy(parent, manifest.name, manifest, path, MAX_SIDECAR_BYTES)
                else:
                    with _opened_at(name, parent, os.O_DIRECTORY) as directory:
                        target.mkdir()
                        self._copy_directory(directory, target, path)
        except OSError as error:
            self.discard(target)
            raise _refusal(path, error, self._instead(path)) from None
        except BaseException:
            self.discard(target)
            raise
        return target

    def _copy_directory(self, directory: int, target: Path, path: str) -> None:
        """A PEFT directory; or of a release its envelope, and the adapter in it."""
        try:
            _copy(directory, ENVELOPE, target / ENVELOPE, f"{path}/{ENVELOPE}", MAX_ENVELOPE_BYTES)
        except FileNotFoundError:
            self._copy_peft(directory, target, path)
            return
        with _opened_at(ADAPTER, directory, os.O_DIRECTORY) as within:
            (target / ADAPTER).mkdir()
            self._copy_peft(within, target / ADAPTER, f"{path}/{ADAPTER}")

    def _copy_peft(self, directory: int, target: Path, path: str) -> None:
        for file, most in ((CONFIG, MAX_CONFIG_BYTES), (WEIGHTS, self.most_bytes(True))):
            _copy(directory, file, target / file, f"{path}/{file}", most)
        for file in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):  # most have none
                _copy(directory, file, target / file, f"{path}/{file}", MAX_SETTINGS_BYTES)

    def _instead(self, path: str) -> str:
        """What lies at `path` within the folder, where no adapter does."""
        place = self._folder / path
        try:
            if not place.resolve().is_relative_to(self._folder):
                return ""
            return told_instead(place).replace(f"{self._folder}/", "")
        except OSError:  # it changes meanwhile
            return ""

    def keep(self, name: str, copy: Path) -> None:
        """`copy` is what the adapter `name` is read from now on; the one before is deleted."""
        self.drop(name)
        self._kept[name] = copy

    def drop(self, name: str) -> None:
        """Nothing reads the adapter `name` from a copy any more."""
        copy = self._kept.pop(name, None)
        if copy is not None:
            self.discard(copy)

    def discard(self, copy: Path) -> None:
        """Delete a copy."""
        shutil.rmtree(self._private / copy.relative_to(self._private).parts[0], ignore_errors=True)

    def shown(self, source: Path) -> str:
        """What an adapter's source is called in answers: its path below the folder, or its name where it is elsewhere."""
        if source.is_relative_to(self._private):
            return str(Path(*source.relative_to(self._private).parts[1:]))
        return source.name

    def close(self) -> None:
        """Delete all copies."""
        self._copies.release()


def _components(path: str) -> list[str]:
    components = path.split("/")
    if len(components) > _MAX_DEPTH or not all(_COMPONENT.fullmatch(component) for component in components):
        raise ConfigError(
            f"lora_path {path!r:.140}: expected a path relative to the adapter folder, such as 'team/tone', of names with "
            "letters, digits and _ . @ + = - that do not begin with a dot"
        )
    return components


@contextlib.contextmanager
def _opened(folder: Path, components: list[str]) -> Iterator[int]:
    """The descriptor of the folder that lies at `components` below `folder`."""
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        for component in components:
            descriptor = stack.enter_context(_opened_at(component, descriptor, os.O_DIRECTORY))
        yield descriptor


@contextlib.contextmanager
def _opened_at(name: str, parent: int, flags: int = 0) -> Iterator[int]:
    """The descriptor of one entry of a folder, which is no link."""
    descriptor = os.open(name, _FLAGS | flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy(parent: int, name: str, target: Path, shown: str, most: int) -> None:
    """Copy a plain file that has no other name and is not too large, through its descriptor."""
    with _opened_at(name, parent) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError(
                f"lora_path {shown!r:.140}: not a plain file; put the adapter's own files into the folder"
            )
        if status.st_nlink > 1:
            raise AdapterError(f"lora_path {shown!r:.140}: has another name (a hard link); copy the file instead")
        if status.st_size > most:
            told = f"lora_path {shown!r:.140}: {status.st_size} bytes; at most {most} are read"
            if name == WEIGHTS or name.endswith(".onnx_adapter"):
                raise AdapterTooLargeError(f"{told}; raise --adapter-memory, or train an adapter of a smaller rank")
            raise AdapterError(told)
        with target.open("xb") as copy:
            left = status.st_size  # a file that grows meanwhile is not followed
            while left and (block := os.read(descriptor, min(left, _BLOCK_BYTES))):
                copy.write(block)
                left -= len(block)


def _refusal(path: str, error: OSError, instead: str) -> AdapterError:
    shown = f"lora_path {path!r:.140}"
    if isinstance(error, FileNotFoundError):
        return NoSuchAdapterError(
            f"{shown}: expected an .onnx_adapter file, or a directory with {CONFIG} and {WEIGHTS}, in the adapter folder"
            + (f"; {instead}" if instead and not instead.startswith("expected") else "")
        )
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return AdapterError(
            f"{shown}: a link, as in a hub's cache, or not a directory; only plain files and directories are read: copy "
            f"what the links show into the adapter folder, with: cp -rL {path} NAME"
        )
    return AdapterError(f"{shown}: cannot be copied: {error.strerror}")
