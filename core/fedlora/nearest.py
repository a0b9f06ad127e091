"""What somebody may have meant by a name that is not known, or by a path at which nothing lies."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from fedlora.counted import ranges
from fedlora.errors import ConfigError

_MAX_LENGTH = 200  # of a name that is compared: a stranger may have written it
_MAX_COMPARED = 1000  # names that it is compared with
_ALIKE = 0.6
_MAX_SHOWN = 5  # neighbours of a path


def hint(
    name: str,
    known: Iterable[str],
    otherwise: str,
    *,
    most: int = 1,
    likeness: float = _ALIKE,
    shown: Callable[[str], str] = str,
) -> str:
    """`did you mean X?` with up to `most` of the names that are like it, the likest first; `otherwise` where none is.

    Names are like each other from 0 (in nothing) to 1; those below `likeness` are not told.
    """
    near = difflib.get_close_matches(name[:_MAX_LENGTH], list(islice(known, _MAX_COMPARED)), most, likeness)
    return f"did you mean {', '.join(map(shown, near))}?" if near else otherwise


def unknown_key(key: str, known: Iterable[str], where: str) -> ConfigError:
    """What a reader of a configuration raises for a key that it does not know."""
    known = list(known)
    near = hint(key, known, f"known keys: {', '.join(known)}", likeness=0.5)
    return ConfigError(f"{where}: unknown key {key}; {near}")


def beside(path: str | Path, known: Iterable[str] = ()) -> str:
    """What may have been meant by a path at which nothing lies; empty where something does, or nothing can be told.

    `did you mean X?` with the likest neighbour or name that is `known`, or some of what lies beside it; where its folder
    is not there either, of the folder. Where both are numbers, as the rounds of a run are, which numbers there are.
    """
    missing = Path(path)
    if _lies_there(missing):
        return ""
    while not _lies_there(missing.parent) and missing.parent != missing:
        missing = missing.parent
    names = sorted(_neighbours(missing.parent))
    where = "" if missing == Path(path) else f"there is no {missing}"
    numbers = [name for name in names if name.isascii() and name.isdecimal()] if missing.name.isdecimal() else []
    if numbers:  # such as the rounds of a run, of which none is another one misspelled
        others, near = f"beside it: {ranges(map(int, numbers), width=len(numbers[0]))}", ""
    else:
        # An ending that they share makes no two names alike.
        alike = [name for name in names if _likeness(Path(name).stem, missing.stem) >= _ALIKE]
        near = hint(missing.name, [*known, *alike], "", shown=lambda name: _shown(missing, name, known))
        more = ", ..." if len(names) > _MAX_SHOWN else ""
        others = f"beside it: {', '.join(names[:_MAX_SHOWN])}{more}" if names else ""
    return "; ".join(part for part in (where, near or others) if part)


def check_there(path: str | Path, known: Iterable[str] = (), otherwise: str = "") -> None:
    """Raise ConfigError where nothing lies at a path and it is none of the `known` names.

    It tells what may have been meant, and `otherwise` what to do.
    """
    if str(path) not in known and not _lies_there(Path(path)):
        parts = (f"{path}: there is no such file or folder", beside(path, known), otherwise)
        raise ConfigError("; ".join(part for part in parts if part))


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one[:_MAX_LENGTH], other[:_MAX_LENGTH]).ratio()


def _lies_there(path: Path) -> bool:
    """Also where it may not be looked at: what is wrong there is for whoever opens it to say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def _neighbours(folder: Path) -> list[str]:
    """The names in a folder, but hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MAX_COMPARED) if not entry.name.startswith(".")]
    except OSError:
        return []


def _shown(missing: Path, name: str, known: Iterable[str]) -> str:
    return name if name in known else str(missing.with_name(name))
