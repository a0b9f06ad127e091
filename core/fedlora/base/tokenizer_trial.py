"""A tokenizer of a stranger, opened for the first time in a process of its own, where time and memory are bounded.

What the library `tokenizers` does with a file cannot be foreseen from the file alone: it is written in another language,
and may abort the process or take all its memory. Which files were tried is remembered, so that it costs once on a machine.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys

from fedlora.base import tokenizer_child
from fedlora.files.limited import limited
from fedlora.native import BuildError, read_cached, write_cached

MAX_CPU_S = 30
MAX_MEMORY_BYTES = 4 << 30  # of addresses, and what the largest tokenizers take of it for each byte of theirs:
_BYTES_PER_BYTE = 32
_PATIENCE_S = 120.0  # of a machine that is busy
_TRIED = "tried\n"
_tried: set[str] = set()


class TokenizerEndsProcessError(Exception):
    """A tokenizer that costs whoever opens it its process."""


def try_tokenizer(content: bytes, module: str) -> None:
    """Open a tokenizer.json with the library `module`, and give it texts, elsewhere. Raises TokenizerEndsProcessError.

    Where no process can be begun, or it has no such library, nothing is tried.
    """
    name = f"tokenizer-{hashlib.sha256(module.encode() + content).hexdigest()[:32]}.txt"
    if name in _tried or _is_remembered(name):
        return
    memory = MAX_MEMORY_BYTES + _BYTES_PER_BYTE * len(content)
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", *limited(tokenizer_child.__file__, cpu_s=MAX_CPU_S, memory_bytes=memory), module],
            input=content, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, timeout=_PATIENCE_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TokenizerEndsProcessError(
            f"it takes more than {_PATIENCE_S:g} s to open it and read a few texts"
        ) from None
    except OSError:
        return
    if done.returncode in (-getattr(signal, "SIGXCPU", 0), -getattr(signal, "SIGKILL", 0)) and done.returncode:
        raise TokenizerEndsProcessError(
            f"it takes more than {MAX_CPU_S} s, or all memory, to open it and read a few texts"
        )
    if done.returncode < 0 or done.returncode == 1:
        raise TokenizerEndsProcessError(
            f"it ends the process that opens it and reads a few texts ({done.returncode}), or takes more than "
            f"{memory >> 20} MB of memory"
        )
    if done.returncode == 0:
        _tried.add(name)
        try:
            write_cached(name, _TRIED)
        except BuildError:
            return  # the next process tries it again


def _is_remembered(name: str) -> bool:
    try:
        return read_cached(name) == _TRIED
    except BuildError:
        return False
