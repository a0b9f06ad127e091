"""The keys and values of the rows of a batch, in place for a graph that reads and extends them where they lie.

For every layer one tensor of keys and one of values, float32 [rows, K, capacity, D], of which a row has what its tokens
filled. The memory is mapped, and taken from the system as tokens are written; a row that is let go gives it back.
"""

# K key/value heads, D head size, L layers

from __future__ import annotations

import mmap
import sys

import numpy as np
from fedlora.family import DecoderShape
from numpy.typing import NDArray

BLOCK_TOKENS = 16  # what rows grow by, and what prefixes are kept in
Block = NDArray[np.float32]  # [2 L, K, BLOCK_TOKENS, D]

_RELEASE = getattr(mmap, "MADV_DONTNEED", None)
_SMALL_PAGES = getattr(mmap, "MADV_NOHUGEPAGE", None)  # else a token takes as much memory as a thousand


def block_bytes(shape: DecoderShape) -> int:
    """What the keys and values of BLOCK_TOKENS tokens take."""
    return 4 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * BLOCK_TOKENS


def blocks_of(tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class KVCache:
    """The buffers of all rows."""

    def __init__(self, shape: DecoderShape, rows: int, blocks: int) -> None:
        """Room for `rows` rows of `blocks` blocks of tokens each."""
        self.capacity = blocks * BLOCK_TOKENS
        self._row_bytes = 4 * shape.num_kv_heads * self.capacity * shape.head_dim
        self._maps = [_mapped(rows * self._row_bytes) for _ in range(2 * shape.num_layers)]
        size = (rows, shape.num_kv_heads, self.capacity, shape.head_dim)
        self._buffers = [np.frombuffer(each, np.float32).reshape(size) for each in self._maps]
        self.blocks = [0] * rows  # of memory that each row has taken

    def of_rows(self, begin: int, end: int) -> list[NDArray[np.float32]]:
        """The tensors [end - begin, K, capacity, D] of some rows: the keys and the values of each layer in turn."""
        return [buffer[begin:end] for buffer in self._buffers]

    def grow(self, row: int, tokens: int) -> None:
        """Count the memory that a row of so many tokens takes."""
        self.blocks[row] = max(self.blocks[row], blocks_of(tokens))

    def move(self, source: int, target: int, tokens: int) -> None:
        """Put the first `tokens` tokens of one row in another's place, and release it: both take no more than they did."""
        if self.blocks[target] > self.blocks[source]:
            self.release(target)
        for number, buffer in enumerate(self._buffers):
            buffer[target, :, :tokens] = buffer[source, :, :tokens]
            self._give_back(number, source)
        self.blocks[target], self.blocks[source] = self.blocks[source], 0

    def read_block(self, row: int, begin: int) -> Block:
        """A copy of a row's block whose first token is at `begin`."""
        part = slice(begin, begin + BLOCK_TOKENS)
        return np.stack([buffer[row, :, part] for buffer in self._buffers])

    def write(self, row: int, begin: int, heads: NDArray[np.float32]) -> None:
        """Fill a row from `begin` on with keys and values [2 L, K, tokens, D]: a block, or those of virtual tokens."""
        part = slice(begin, begin + heads.shape[2])
        for buffer, values in zip(self._buffers, heads, strict=True):
            buffer[row, :, part] = values
        self.grow(row, part.stop)

    def release(self, row: int) -> None:
        """Give the memory of a row back to the system, where that can be; what it held is gone."""
        if self.blocks[row]:
            for number in range(len(self._maps)):
                self._give_back(number, row)
            self.blocks[row] = 0

    def _give_back(self, number: int, row: int) -> None:
        """Whole pages of a row, in one of the buffers."""
        begin, end = row * self._row_bytes, (row + 1) * self._row_bytes
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if _RELEASE is not None and last > first:
            self._maps[number].madvise(_RELEASE, first, last - first)


def _mapped(size: int) -> mmap.mmap:
    """Memory that is zero, and not there yet."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Private: what is shared with nobody can be given back.
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _SMALL_PAGES is not None:
        mapped.madvise(_SMALL_PAGES)
    return mapped
