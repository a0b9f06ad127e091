"""The memory of the batch in blocks of tokens: the rows' keys and values and the kept prefixes, within one budget.

Prefixes that nobody needs just now make room for rows. Where that does not suffice, it is the scheduler that decides who
has to leave.
"""

from __future__ import annotations

from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, KVCache, blocks_of
from fedlora_serve.batching.prefix_cache import PrefixCache
from fedlora_serve.batching.sequence import SequenceState


class BlockManager:
    """Counts what rows take, and keeps prefixes in what they leave. One thread at a time."""

    def __init__(self, kv_cache: KVCache, budget_blocks: int) -> None:
        self.prefixes = PrefixCache()
        self._kv_cache, self._budget_blocks = kv_cache, budget_blocks

    @property
    def used_blocks(self) -> int:
        """What rows and prefixes take."""
        return sum(self._kv_cache.blocks) + len(self.prefixes)

    def make_room(self, blocks: int) -> bool:
        """Drop prefixes until `blocks` more fit; none where they would not fit even so. Whether they do."""
        if sum(self._kv_cache.blocks) + blocks > self._budget_blocks:
            return False
        while self.used_blocks + blocks > self._budget_blocks:
            if not self.prefixes.forget_one():
                return False
        return True

    def grow(self, row: int, tokens: int) -> bool:
        """Count memory for so many tokens of a row; whether there is any."""
        more = blocks_of(tokens) - self._kv_cache.blocks[row]
        if more > 0 and not self.make_room(more):
            return False
        self._kv_cache.grow(row, tokens)
        return True

    def load_prefix(self, row: int, sequence: SequenceState) -> None:
        """Begin a sequence in its row with its adapter's virtual tokens, and with what was kept of its beginning."""
        if sequence.adapter and sequence.adapter.prefix is not None:
            self._kv_cache.write(row, 0, sequence.adapter.prefix)
        blocks = self.prefixes.find(sequence.digest, sequence.tokens)
        for number, block in enumerate(blocks):
            self._kv_cache.write(row, sequence.virtual_tokens + number * BLOCK_TOKENS, block)
        sequence.length, sequence.has_begun = len(blocks) * BLOCK_TOKENS, True
        if sequence.is_prompt_only:
            sequence.cached_tokens = sequence.length

    def keep_prefix(self, row: int, sequence: SequenceState) -> None:
        """Keep what a sequence has in its row, as far as there is memory."""
        self.prefixes.keep(
            sequence.digest,
            sequence.tokens[: sequence.length],
            lambda number: self._kv_cache.read_block(row, sequence.virtual_tokens + number * BLOCK_TOKENS),
            lambda: self.make_room(1),
        )


def computes_prefix_of(older: SequenceState, sequence: SequenceState) -> bool:
    """Whether a sequence that has not begun to read will find the next block that an older one reads."""
    end = (older.length // BLOCK_TOKENS + 1) * BLOCK_TOKENS
    return (
        end <= len(older.tokens)
        and end < len(sequence.tokens)
        and older.digest == sequence.digest
        and older.tokens[:end] == sequence.tokens[:end]
    )
