"""An adapter's file as its difference to the one before: what travels to a device that has that one.

    difference = zlib(planes(parent XOR child)), of two files of one size; planes: every fourth byte, from 0, 1, 2 and 3 on

One round moves a number a little: sign, exponent and the first digits of float32 mostly stay, so a plane is nearly zero,
which deflate takes away. Nothing is rounded: what comes out has the digest of the whole file, or is not used. General
formats (VCDIFF, RFC 3284; bsdiff; zstd's --patch-from) look for runs of equal bytes; numbers that all move have none.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_WIDTH = 4  # bytes of a number
_LEVEL = 6


def difference(parent: bytes, child: bytes) -> bytes | None:
    """What makes `child` of `parent`; None where they differ in size."""
    if len(parent) != len(child):
        return None
    changed = np.frombuffer(parent, np.uint8) ^ np.frombuffer(child, np.uint8)
    whole = len(changed) - len(changed) % _WIDTH
    planes = np.concatenate([changed[:whole].reshape(-1, _WIDTH).T.ravel(), changed[whole:]])
    return zlib.compress(planes.tobytes(), _LEVEL)


def applied(parent: bytes, packed: bytes) -> bytes:
    """The child, of the size of `parent`. Raises ValueError for what is no difference, of which no more is unfolded."""
    unfolding = zlib.decompressobj()
    try:
        planes = unfolding.decompress(packed, len(parent) + 1)
    except zlib.error as error:
        raise ValueError(f"no zlib stream: {error}") from None
    if len(planes) != len(parent) or not unfolding.eof or unfolding.unused_data:
        raise ValueError(f"it unfolds to another size than {len(parent)} bytes")
    return (np.frombuffer(parent, np.uint8) ^ _interleaved(np.frombuffer(planes, np.uint8))).tobytes()


def _interleaved(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    whole = len(planes) - len(planes) % _WIDTH
    return np.concatenate([planes[:whole].reshape(_WIDTH, -1).T.ravel(), planes[whole:]])
