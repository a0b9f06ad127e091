"""What it takes to verify a release, beyond hashing its files."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from fedlora.family import decoder_shape
from fedlora.identity.keys import SigningKey
from fedlora.release.folder import read_release

from harness.checkpoints import CONFIGS
from trust.release_folder import random_adapter, write_release


def verify_ms(folder: Path, rank: int, repeats: int) -> dict[str, float]:
    """Milliseconds of the processor to verify a release of a 135M adapter, to hash its files, and the difference.

    Medians; the files are in the page cache.
    """
    key = SigningKey.generate()
    adapter = random_adapter(decoder_shape(CONFIGS["135M"], "135M"), rank, 1)
    write_release(folder, adapter, "a" * 64, key)
    files = [path for path in folder.rglob("*") if path.is_file()]

    def hashed() -> None:
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256").hexdigest()

    whole = _median_ms(lambda: read_release(folder, [key.public]), repeats)
    hashing = _median_ms(hashed, repeats)
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    return {"whole_ms": whole, "hashing_ms": hashing, "verify_ms": whole - hashing, "size_mb": size_mb}


def _median_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        spent.append((time.process_time() - began) * 1e3)
    return statistics.median(spent)
