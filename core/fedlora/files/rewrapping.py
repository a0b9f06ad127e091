"""All encrypted files below some folders, brought under another key or decrypted, one whole file after another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedlora.errors import AtRestError
from fedlora.files.at_rest import key_id_of, rewrap, unwrap
from fedlora.files.at_rest_key import WrappingKey


def rewrapped(places: Iterable[Path], old: WrappingKey, new: WrappingKey | None) -> int:
    """Rewrap what is under `old` to `new`, or, where that is None, decrypt it; how many files were changed.

    What is under `new` already stays. Raises AtRestError where a file is under a third key, or damaged: those before it are
    changed by then, and a further call goes on.
    """
    count = 0
    for path in _files(places):
        try:
            found = key_id_of(path)
            if not found or (new is not None and found == new.id.hex()):
                continue
            if found != old.id.hex():
                raise AtRestError(
                    f"{path}: encrypted at rest under key {found}; expected {old.id.hex()}: call again with it"
                )
            if new is None:
                unwrap(path, old)
            else:
                rewrap(path, old, new)
        except OSError as error:
            raise AtRestError(f"{path}: cannot be rewrapped: {error.strerror}; mend that, and call again") from None
        count += 1
    return count


def _files(places: Iterable[Path]) -> Iterator[Path]:
    """The plain files below, none through a link, and none that is in the making."""
    for place in places:
        if place.is_file():
            yield place
        for folder, folders, names in os.walk(place):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file() and not path.is_symlink():
                    yield path
