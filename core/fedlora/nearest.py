"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from itertools import islice

from fedlora.errors import ConfigError

_MAX_LENGTH = 200  # of a name that is compared: a stranger may have written it
_MAX_COMPARED = 1000  # names that it is compared with


def hint(
    name: str,
    known: Iterable[str],
    otherwise: str,
    *,
    most: int = 1,
    likeness: float = 0.6,
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
