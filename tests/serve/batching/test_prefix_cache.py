from __future__ import annotations

import numpy as np
from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, Block
from fedlora_serve.batching.prefix_cache import PrefixCache
from hypothesis import given
from hypothesis import strategies as st


def block_of(*numbers: int) -> Block:
    return np.full((2, 1, BLOCK_TOKENS, 8), hash(numbers) % 1000, np.float32)


def kept(cache: PrefixCache, digest: str, tokens: list[int], room: int = 1000) -> None:
    """Keep blocks that tell what they are of."""
    left = iter(range(room))

    def read(number: int) -> Block:
        return block_of(hash(digest), *tokens[: (number + 1) * BLOCK_TOKENS])

    cache.keep(digest, tokens, read, lambda: next(left, None) is not None)


def test_what_is_found_is_the_longest_common_beginning_in_whole_blocks() -> None:
    cache = PrefixCache()
    tokens = list(range(50))
    kept(cache, "a", tokens)
    assert len(cache) == 3
    found = cache.find("a", [*tokens[:40], 7, 7, 7])
    assert len(found) == 2
    np.testing.assert_array_equal(found[1], block_of(hash("a"), *tokens[:32]))
    assert cache.find("a", [9, *tokens]) == []


def test_the_last_token_is_never_found_because_its_scores_are_wanted() -> None:
    cache = PrefixCache()
    tokens = list(range(2 * BLOCK_TOKENS))
    kept(cache, "a", tokens)
    assert len(cache.find("a", tokens)) == 1
    assert len(cache.find("a", [*tokens, 5])) == 2
    assert cache.find("a", []) == []


def test_another_digest_finds_nothing() -> None:
    cache = PrefixCache()
    kept(cache, "version 1", list(range(40)))
    assert cache.find("version 2", list(range(40))) == []
    assert cache.find("", list(range(40))) == []


def test_a_later_block_goes_before_an_earlier_one_and_what_is_used_goes_last() -> None:
    cache = PrefixCache()
    old, new = list(range(48)), list(range(100, 148))
    kept(cache, "a", old)
    kept(cache, "a", new)
    cache.find("a", [*old, 1])
    for left in (2, 1, 0):  # of `new`, from its end
        assert cache.forget_one()
        assert len(cache.find("a", [*new, 1])) == left or left == 0
        assert len(cache.find("a", [*old, 1])) == 3
    for _ in range(3):
        assert cache.forget_one()
    assert not cache.forget_one()


def test_without_room_what_is_there_stays_and_the_rest_is_left_out() -> None:
    cache = PrefixCache()
    kept(cache, "a", list(range(64)), room=2)
    assert len(cache) == 2
    assert len(cache.find("a", list(range(64)))) == 2


def test_a_beginning_that_does_not_fit_is_kept_from_its_start() -> None:
    cache = PrefixCache()
    kept(cache, "other", list(range(32)))
    tokens = list(range(96))

    def room() -> bool:
        return len(cache) < 4 or cache.forget_one()

    for _ in range(2):  # a second time it finds its own first blocks as the least recently used
        cache.keep("a", tokens, lambda number: block_of(number), room)
        assert len(cache.find("a", tokens)) == 4
    kept(cache, "a", tokens[:16])
    assert cache.forget_one()  # what was kept can be dropped later


def test_hits_are_counted_in_tokens() -> None:
    cache = PrefixCache()
    kept(cache, "a", list(range(32)))
    cache.find("a", list(range(33)))
    cache.find("a", list(range(5, 15)))
    assert (cache.lookups, cache.hits) == (32 + 9, 32)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), max_size=60)), max_size=12))
def test_every_block_that_is_found_is_of_exactly_these_tokens(prompts: list[tuple[str, list[int]]]) -> None:
    cache = PrefixCache()
    for digest, tokens in prompts:
        for number, block in enumerate(cache.find(digest, tokens)):
            np.testing.assert_array_equal(block, block_of(hash(digest), *tokens[: (number + 1) * BLOCK_TOKENS]))
        kept(cache, digest, tokens)
