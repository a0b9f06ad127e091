"""What packages add to fedlora, one entry-point group for each kind of thing; fedlora's own come in the same way."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from fedlora.errors import ConfigError, MissingExtraError
from fedlora.nearest import hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """The things of one kind, found by the names under which installed packages offer them."""

    group: str
    noun: str
    key: str  # of the configuration: its value is one of the names

    def names(self) -> list[str]:
        """The names of all that are installed, in order. Nothing is imported."""
        return sorted({point.name for point in self._points()})

    def load(self, name: str) -> object:
        """What a name stands for.

        Raises ConfigError unless one package offers it and it loads, MissingExtraError where that needs another package.
        """
        points = [point for point in self._points() if point.name == name]
        if not points:
            known = self.names()
            if not known:
                raise ConfigError(f"{self.key}: no package offers any {self.noun}; install fedlora again, with pip")
            near = hint(name, known, f"there is {', '.join(known)}", shown=repr)
            raise ConfigError(f"{self.key}: no {self.noun} {name!r}; {near}")
        if len(points) > 1:
            raise ConfigError(
                f"{self.key}: more than one package offers the {self.noun} {name!r}: "
                f"{', '.join(map(_package, points))}; uninstall all but one"
            )
        try:
            found: object = import_module(points[0].module)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{self._told(points[0])} needs a part that is not installed: {error}; install it with pip"
            ) from None
        except Exception as error:  # whatever somebody else's module raises as it is imported
            raise ConfigError(
                f"{self.key}: {self._told(points[0])} does not load: {type(error).__name__}: {error}; mend or uninstall it"
            ) from error
        try:
            for part in points[0].attr.split("."):
                found = getattr(found, part)
        except AttributeError as error:
            raise ConfigError(
                f"{self.key}: {self._told(points[0])} is not where its entry point says: {error}; mend it there"
            ) from None
        return found

    def _told(self, point: EntryPoint) -> str:
        return f"{self.noun} {point.name!r}" + (f" of the package {_package(point)}" if point.dist else "")

    def _points(self) -> tuple[EntryPoint, ...]:
        return _installed(self.group, tuple((folder, _changed_ns(folder)) for folder in sys.path))


def first_that_loads(group: str) -> object | None:
    """What the first of a group stands for whose package is there; None where none is."""
    for point in entry_points(group=group):
        try:
            return cast(object, point.load())
        except ImportError:
            continue
    return None


@lru_cache(maxsize=16)
def _installed(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """A group's entry points; read again once the folders of imports are others or were written to, as pip does."""
    return tuple(entry_points(group=group))


def _changed_ns(folder: str) -> int:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0


def _package(point: EntryPoint) -> str:
    """The name of its distribution: milliseconds, as all of the package's metadata are read for it."""
    return point.dist.name if point.dist else point.value
