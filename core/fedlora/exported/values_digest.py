"""The digest of an adapter's values: what a service and a release call it by, however it is stored."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def digest_of(values: Mapping[str, NDArray[np.float32]]) -> str:
    """sha256, in hexadecimal, over every adapter input's name, shape and bytes, in the order of the names.

    Each part follows its own length, so that no two contents give the same bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(values):
        value = np.ascontiguousarray(values[name], "<f4")
        for part in (
            name.encode(),
            struct.pack(f"<{value.ndim}q", *value.shape),
            value.reshape(-1).view(np.uint8).data,
        ):
            digest.update(struct.pack("<q", len(part)))
            digest.update(part)
    return digest.hexdigest()
