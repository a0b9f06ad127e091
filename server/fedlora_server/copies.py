"""An update that is the copy of another device's counts once: that of two devices which trained alike on the same text, or
of one that says again what another one said. It counts as that of the node with the lowest number, whichever came first.

Who changes one number in a thousand is not found, and need not be: a robust rule bounds what one device can do.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
from fedlora.errors import UpdateError
from numpy.typing import NDArray

_BYTES_SEEN = 1 << 14  # of an update
_NOBODY = None


class Copies:
    """The updates of one round, each known by some of its bytes, at places that nobody can guess."""

    def __init__(self, unchanged: memoryview) -> None:
        """`unchanged` are the numbers of an update that changes nothing: any number of devices may send those."""
        self._key = secrets.randbits(64)
        self._places: dict[int, NDArray[np.int64]] = {}  # by the length of the numbers
        self._senders: dict[tuple[int, bytes], tuple[int, str] | None] = {self._mark(unchanged): _NOBODY}

    def check(self, node: int, device: str, numbers: memoryview) -> int | None:
        """The node that sent these numbers before and gives way, if there is one.

        Raises UpdateError where they were sent by a node that comes before this one.
        """
        mark = self._mark(numbers)
        if mark not in self._senders:
            self._senders[mark] = node, device
            return None
        earlier = self._senders[mark]
        if earlier is _NOBODY:
            return None
        if earlier[0] <= node:
            raise UpdateError("duplicate", f"the numbers are those of device {earlier[1]}: they count once")
        self._senders[mark] = node, device
        return earlier[0]

    def _mark(self, numbers: memoryview) -> tuple[int, bytes]:
        seen = np.frombuffer(numbers, np.uint8)
        if len(seen) > _BYTES_SEEN:
            if len(seen) not in self._places:
                generator = np.random.default_rng([self._key, len(seen)])
                self._places[len(seen)] = generator.integers(0, len(seen), _BYTES_SEEN)
            seen = seen[self._places[len(seen)]]
        return len(numbers), hashlib.sha256(seen.tobytes()).digest()
