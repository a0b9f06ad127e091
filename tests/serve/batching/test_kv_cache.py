from __future__ import annotations

import numpy as np
from fedlora.base.pack import BasePack
from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, KVCache, block_bytes, blocks_of


def filled(base: BasePack, rows: int = 3, blocks: int = 4) -> KVCache:
    kv_cache = KVCache(base.shape, rows, blocks)
    for number, buffer in enumerate(kv_cache.of_rows(0, rows)):
        buffer[...] = np.random.default_rng(number).normal(size=buffer.shape)
    for row in range(rows):
        kv_cache.grow(row, blocks * BLOCK_TOKENS)
    return kv_cache


def test_the_rows_of_a_step_are_a_contiguous_part_of_the_same_memory(base: BasePack) -> None:
    kv_cache, shape = filled(base), base.shape
    parts, whole = kv_cache.of_rows(1, 3), kv_cache.of_rows(0, 3)
    assert len(parts) == 2 * shape.num_layers
    for part, buffer in zip(parts, whole, strict=True):
        assert part.shape == (2, shape.num_kv_heads, 4 * BLOCK_TOKENS, shape.head_dim)
        assert part.flags.c_contiguous
        assert np.shares_memory(part, buffer)


def test_a_block_that_is_read_from_one_row_and_written_to_another_is_the_same_there(base: BasePack) -> None:
    kv_cache = filled(base)
    block = kv_cache.read_block(0, 2 * BLOCK_TOKENS)
    assert block.nbytes == block_bytes(base.shape)
    kv_cache.write(1, 2 * BLOCK_TOKENS, block)
    for buffer in kv_cache.of_rows(0, 3):
        place = slice(2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS)
        np.testing.assert_array_equal(buffer[1, :, place], buffer[0, :, place])
        assert not np.array_equal(buffer[1, :, :BLOCK_TOKENS], buffer[0, :, :BLOCK_TOKENS])


def test_a_row_that_moves_takes_its_tokens_along(base: BasePack) -> None:
    kv_cache = filled(base)
    before = [buffer.copy() for buffer in kv_cache.of_rows(2, 3)]
    kv_cache.move(2, 0, 21)
    for buffer, old in zip(kv_cache.of_rows(0, 1), before, strict=True):
        np.testing.assert_array_equal(buffer[:, :, :21], old[:, :, :21])


def test_a_row_that_moves_takes_the_memory_of_one_row_whichever_was_longer(base: BasePack) -> None:
    for target_tokens, source_tokens in ((1000, 20), (20, 1000)):
        kv_cache = KVCache(base.shape, 2, 64)  # rows larger than a page
        for buffer in kv_cache.of_rows(0, 2):
            buffer[...] = 1
        kv_cache.grow(0, target_tokens)
        kv_cache.grow(1, source_tokens)
        kv_cache.move(1, 0, source_tokens)
        assert kv_cache.blocks == [blocks_of(source_tokens), 0]
        for target, source in zip(kv_cache.of_rows(0, 1), kv_cache.of_rows(1, 2), strict=True):
            assert target[:, :, :source_tokens].all()
            assert bool(target.all()) == (target_tokens < source_tokens)  # else the rest was given back
            assert not source.any()


def test_memory_that_was_given_back_reads_as_zero_and_counts_no_more(base: BasePack) -> None:
    kv_cache = KVCache(base.shape, 2, 64)  # rows larger than a page
    for buffer in kv_cache.of_rows(0, 2):
        buffer[...] = 1
    kv_cache.grow(0, 100)
    kv_cache.grow(1, 1)
    assert kv_cache.blocks == [blocks_of(100), 1]
    kv_cache.release(0)
    assert kv_cache.blocks == [0, 1]
    for first, second in zip(kv_cache.of_rows(0, 1), kv_cache.of_rows(1, 2), strict=True):
        assert not first.any()
        assert second.all()
