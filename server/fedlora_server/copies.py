"""An update that is the copy of another device's counts once: that of two devices which trained alike on the same text, or
of one that says again what another one said.

Who changes one number in a thousand is not found, and need not be: a robust rule bounds what one device can do.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
from fedlora.errors import UpdateError
from numpy.typing import NDArray

_BYTES_SEEN = 1 << 14  # of an update
_NOBODYS = ""


class Copies:
    """The updates of one round, each known by some of its bytes, at places that nobody can guess."""

    def __init__(self, unchanged: memoryview) -> None:
        """`unchanged` are the numbers of an update that changes nothing: any number of devices may send those."""
        self._key = secrets.randbits(64)
        self._places: dict[int, NDArray[np.int64]] = {}  # by the length of the numbers
        self._devices = {self._mark(unchanged): _NOBODYS}

    def check(self, device: str, numbers: memoryview) -> None:
        """Raise UpdateError where these are the numbers of an earlier device."""
        mark = self._mark(numbers)
        if mark not in self._devices:
            self._devices[mark] = device
        elif self._devices[mark] != _NOBODYS:
            raise UpdateError("duplicate", f"the numbers are those of device {self._devices[mark]}: they count once")

    def _mark(self, numbers: memoryview) -> tuple[int, bytes]:
        seen = np.frombuffer(numbers, np.uint8)
        if len(seen) > _BYTES_SEEN:
            if len(seen) not in self._places:
                generator = np.random.default_rng([self._key, len(seen)])
                self._places[len(seen)] = generator.integers(0, len(seen), _BYTES_SEEN)
            seen = seen[self._places[len(seen)]]
        return len(numbers), hashlib.sha256(seen.tobytes()).digest()
