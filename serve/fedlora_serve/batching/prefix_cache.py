"""Keys and values of beginnings that were read before, block by block, for those who begin alike.

A block is known by all that went into it: the digest of the adapter, or none, and every token up to its last. Two versions
of an adapter share nothing, however they are called, nor do two combinations of adapters, or of weights. What was least
recently of use goes first, later blocks before earlier ones.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, Block


class PrefixCache:
    """Blocks by what they depend on. One thread at a time."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # the least recently used first
        self._kept: frozenset[bytes] = frozenset()  # what is being kept just now
        self.lookups = 0  # tokens that were looked for
        self.hits = 0  # and found

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, digest: str, tokens: Sequence[int]) -> list[Block]:
        """The blocks of the longest known beginning of `tokens`, all but the last token of which may be in it.

        The last one has to be read for its scores.
        """
        found: list[tuple[bytes, Block]] = []
        usable = max(len(tokens) - 1, 0)
        for key in _keys(digest, tokens[:usable]):
            block = self._blocks.get(key)
            if block is None:
                break
            found.append((key, block))
        for key, _ in reversed(found):  # the first block was of use last: it goes after those that need it
            self._blocks.move_to_end(key)
        self.lookups += usable
        self.hits += len(found) * BLOCK_TOKENS
        return [block for _, block in found]

    def keep(
        self, digest: str, tokens: Sequence[int], read_block: Callable[[int], Block], make_room: Callable[[], bool]
    ) -> None:
        """Keep the whole blocks of `tokens` that are not there yet, read by `read_block`, while `make_room()` is true."""
        keys = list(_keys(digest, tokens))
        self._kept = frozenset(keys)
        for key in keys:
            if key in self._blocks:
                self._blocks.move_to_end(key)
        for number, key in enumerate(keys):
            if key not in self._blocks:
                if not make_room():
                    break
                self._blocks[key] = read_block(number)
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)
        self._kept = frozenset()

    def forget_one(self) -> bool:
        """Drop the block that was least recently of use; whether there was one.

        While a beginning is kept, its own blocks stay: a later one is of no use without those before it.
        """
        oldest = next(iter(self._blocks), None)
        if oldest is None or oldest in self._kept:
            return False
        del self._blocks[oldest]
        return True


def _keys(digest: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """The key of every whole block: a chain of hashes, each over the one before."""
    key = hashlib.sha256(digest.encode()).digest()
    whole = np.asarray(tokens[: len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS], np.int64)
    for block in whole.reshape(-1, BLOCK_TOKENS):
        key = hashlib.sha256(key + block.tobytes()).digest()
        yield key
