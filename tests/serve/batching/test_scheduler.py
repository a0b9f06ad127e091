"""Who joins, what each step reads, who leaves: over a graph that answers from what a row's memory holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.batching.fair_queue import rows_by_share
from fedlora_serve.batching.kv_cache import BLOCK_TOKENS
from fedlora_serve.text.text_stream import TextStream
from fedlora_serve.text.token_sampler import TokenSampler
from fedlora_serve.text.tokenizer import open_tokenizer

from tests.serve.batching.pretend_graph import PretendBatch, adapter_of, said, with_virtual
from tests.serve.speakers import random_prompt

Batches = Callable[..., PretendBatch]


@pytest.fixture(scope="session")
def batches(long_base: BasePack) -> Batches:
    tokenizer = open_tokenizer(long_base.directory)
    return lambda **options: PretendBatch(long_base.shape, tokenizer, **options)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random_prompt(np.random.default_rng(seed), length)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_asked_under_any_budget_every_answer_is_the_one_that_it_would_be_alone(
    batches: Batches, long_base: BasePack, seed: int
) -> None:
    random = np.random.default_rng(seed)
    blocks = int(random.integers(3, 30))
    capacity = min(blocks, 16)
    batch = batches(
        rows=int(random.integers(1, 7)),
        budget_blocks=blocks,
        capacity_blocks=capacity,
        prefill_tokens=int(random.choice([1, 3, 16, 64])),
        look_s=float(random.choice([0.0, 0.02, 1.0])),
    )
    limit = capacity * BLOCK_TOKENS
    adapters = [None, adapter_of("a"), adapter_of("b"), with_virtual(adapter_of("c"), long_base.shape, 21)]
    beginnings = [prompt_of(limit, seed=n) for n in range(3)]
    asked = []
    for _ in range(25):
        prompt = [
            *beginnings[random.integers(0, 3)][: int(random.integers(0, limit // 2))],
            *random_prompt(random, int(random.integers(1, limit // 2))),
        ]
        count, adapter = int(random.integers(1, 60)), adapters[random.integers(0, 4)]
        room = limit - (adapter.virtual_tokens if adapter else 0)
        share, prompt = str(random.integers(0, 3)), prompt[: room - 1]
        asked.append((batch.ask(prompt, count, adapter, share=share), prompt, min(count, room - len(prompt)), adapter))
        for _ in range(int(random.integers(0, 4))):
            batch.step()
        if random.random() < 0.1 and batch.scheduler.sequences:
            batch.scheduler.end(
                batch.scheduler.sequences[int(random.integers(0, len(batch.scheduler.sequences)))], "cancelled"
            )
    batch.finish()
    for listener, prompt, count, adapter in asked:
        end = listener.wait()
        assert end.reason in ("length", "cancelled")
        expected = said(prompt, count, adapter)
        assert listener.tokens == expected[: None if end.reason == "length" else len(listener.tokens)]


def test_prompts_up_to_the_last_token_of_a_row_are_read_beside_others(batches: Batches) -> None:
    batch = batches(rows=4, budget_blocks=80)
    long = prompt_of(255)
    batch.ask(long)
    batch.finish()
    again, other = batch.ask(long), batch.ask(prompt_of(100, seed=1), 3)  # 15 tokens in place 240, beside 100
    batch.finish()
    assert (again.wait().reason, other.wait().reason) == ("length", "length")
    assert again.wait().cached_tokens == 240


def test_virtual_tokens_leave_a_row_less_room_for_what_others_read(batches: Batches, long_base: BasePack) -> None:
    batch, adapter = batches(rows=4, budget_blocks=80), with_virtual(adapter_of("c"), long_base.shape, 21)
    for prompt in ([1], prompt_of(234)):  # so that the oldest prompt is next
        batch.ask(prompt, adapter=adapter)
        batch.finish()
    other, again = batch.ask(prompt_of(30, seed=1), 3), batch.ask(prompt_of(234), adapter=adapter)  # 10 in place 245
    batch.finish()
    assert (other.wait().reason, again.wait().reason) == ("length", "length")
    assert again.wait().cached_tokens == 224


def test_a_short_prompt_does_not_wait_until_a_long_one_is_read(batches: Batches) -> None:
    batch = batches(rows=8, budget_blocks=200, prefill_tokens=4)
    going_on = batch.ask([1], 200)
    batch.step()
    long = batch.ask(prompt_of(200))
    short = [batch.ask([n, n]) for n in range(3)]
    for _ in range(6):
        batch.step()
    assert all(listener.ended.is_set() for listener in short)
    batch.finish()
    assert long.wait().reason == going_on.wait().reason == "length"


def test_a_long_prompt_does_not_starve_where_short_ones_keep_coming(batches: Batches) -> None:
    batch, random = batches(rows=6, budget_blocks=200, prefill_tokens=8), np.random.default_rng(0)

    def short() -> None:
        batch.ask(random_prompt(random, 8), int(random.integers(4, 6)))

    for _ in range(3):
        short()
    batch.step()
    long, steps = batch.ask(random_prompt(random, 80)), 0
    while not long.ended.is_set():
        while len(batch.waiting) < 6:
            short()
        batch.step()
        steps += 1
    assert steps <= 2 * 80 // 8 + 2
    batch.finish()


def test_the_last_row_takes_the_place_of_one_that_ended_though_there_is_no_memory_for_both(batches: Batches) -> None:
    batch = batches(rows=2, budget_blocks=16)
    short, long = prompt_of(20), prompt_of(180, seed=1)
    ending, staying = batch.ask(short, 5), batch.ask(long, 40)
    batch.finish()
    assert staying.tokens == said(long, 40)
    assert ending.tokens == said(short, 5)
    assert sum(sum(read) for _, read in batch.graph.steps) == len(short) + 4 + len(long) + 39  # nothing was read twice


def test_a_prompt_that_has_to_wait_for_memory_costs_nobody_the_prefixes_that_are_kept(batches: Batches) -> None:
    batch = batches(rows=3, budget_blocks=16)
    system = prompt_of(48)
    batch.ask(system)
    batch.finish()
    running = batch.ask(prompt_of(100, seed=1), 40)
    batch.step()
    waits = batch.ask(prompt_of(200, seed=2))
    batch.step()
    assert not waits.ended.is_set()
    assert len(batch.scheduler.blocks.prefixes.find("", [*system, 1])) == 3
    batch.finish()
    assert running.wait().reason == "length"


def test_a_row_that_had_a_long_answer_keeps_no_memory_for_a_short_one(batches: Batches) -> None:
    batch = batches(rows=2, budget_blocks=16)
    batch.ask(prompt_of(200), 3)
    short = batch.ask([1, 2], 30)
    while not short.tokens:
        batch.step()
    batch.ask(prompt_of(180, seed=3))
    batch.step()
    assert len(batch.scheduler.sequences) == 2
    batch.finish()


def test_who_comes_in_is_not_preempted_by_the_next_token_of_another(batches: Batches) -> None:
    batch = batches(rows=2, budget_blocks=8)
    batch.ask(prompt_of(16), 30)
    batch.step()
    batch.ask(prompt_of(90, seed=1), 30)  # six blocks: with it there is none to grow by
    batch.finish()
    assert sum(sum(read) for _, read in batch.graph.steps) == 16 + 29 + 90 + 29  # nothing was read twice


def test_rows_that_go_on_stay_side_by_side_whoever_ends_between_them(batches: Batches) -> None:
    batch, random = batches(rows=8, budget_blocks=200, prefill_tokens=16), np.random.default_rng(0)
    listeners = [batch.ask(random_prompt(random, 100), 20) for _ in range(40)]
    batch.finish()
    assert all(listener.wait().reason == "length" for listener in listeners)
    steps = [read for _, read in batch.graph.steps if max(read) == 1]
    assert sum(read.count(0) for read in steps) < 0.1 * sum(map(sum, steps))


def test_prompts_with_a_beginning_in_common_are_read_together_once_it_is_there(batches: Batches) -> None:
    batch = batches(rows=6, budget_blocks=100)
    system = prompt_of(32)
    listeners = [batch.ask([*system, *prompt_of(9, seed=n)], 5) for n in range(6)]
    batch.finish()
    assert [read for _, read in batch.graph.steps if max(read) > 1] == [[41], [9, 9, 9, 9, 9]]
    assert [listener.wait().cached_tokens for listener in listeners] == [0, 32, 32, 32, 32, 32]


def test_tokens_are_looked_for_once_however_long_a_prompt_waits_behind_others(batches: Batches) -> None:
    batch = batches(rows=4, budget_blocks=100, prefill_tokens=4)
    batch.ask([1], 200)
    batch.step()
    for n in range(3):
        batch.ask(prompt_of(100, seed=n), 5)
    batch.finish()
    assert batch.scheduler.blocks.prefixes.lookups == 3 * 99


def test_a_sampler_that_fails_ends_its_own_answer_only(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, choose = batches(rows=2, budget_blocks=20), TokenSampler.choose

    def fails(sampler: TokenSampler, scores: object) -> object:
        assert sampler._sampling.seed != 13, "a mistake of our own"
        return choose(sampler, scores)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenSampler, "choose", fails)
    bad, good = batch.ask([1], 9, seed=13), batch.ask([2], 9)
    batch.finish()
    assert (bad.wait().reason, bad.wait().message) == ("error", "the server failed: AssertionError")
    assert good.wait().reason == "length"


def test_an_adapter_that_cannot_join_ends_its_own_answer_only(batches: Batches) -> None:
    batch = batches(rows=2, budget_blocks=20)
    bad, good = batch.ask([1], 9, adapter_of("broken")), batch.ask([2], 9)
    batch.finish()
    assert (bad.wait().reason, bad.wait().message) == ("error", "the server failed: AssertionError")
    assert good.wait().reason == "length"


def test_an_answer_whose_last_text_cannot_be_told_is_ended_and_its_adapter_let_go(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batches(rows=1, budget_blocks=20)

    def fails(stream: TextStream) -> str:
        raise ValueError("a mistake of our own")

    monkeypatch.setattr(TextStream, "finish", fails)
    listener = batch.ask([1], 2, adapter_of("a"))
    with pytest.raises(ValueError, match="our own"):
        batch.finish()
    listener.wait()


@pytest.mark.parametrize(("rows", "budget_blocks"), [(8, 200), (8, 20), (2, 40)])
def test_who_asks_for_much_leaves_others_their_share(batches: Batches, rows: int, budget_blocks: int) -> None:
    batch = batches(rows=rows, budget_blocks=budget_blocks)
    much = [batch.ask(prompt_of(20, seed=n), 60, share="a") for n in range(40)]
    for _ in range(10):
        batch.step()
    assert len(batch.scheduler.sequences) > 1, "alone, one has all there is room for"
    little = batch.ask(prompt_of(20, seed=99), 4, share="b")
    for _ in range(6):
        batch.step()
    assert little.ended.is_set(), "one step for its prompt, and one for each token"
    several = [batch.ask(prompt_of(20, seed=n), 60, share="b") for n in range(10)]
    for _ in range(10):
        batch.step()
    running = rows_by_share(batch.scheduler.sequences)
    assert abs(running["a"] - running["b"]) <= 1
    batch.finish()
    for listener, seed, count in [
        *((listener, seed, 60) for listeners in (much, several) for seed, listener in enumerate(listeners)),
        (little, 99, 4),
    ]:
        assert listener.wait().reason == "length"
        assert listener.tokens == said(prompt_of(20, seed=seed), count)


def test_a_step_reads_those_alone_who_had_less_of_the_time_and_the_others_keep_their_rows(batches: Batches) -> None:
    batch = batches(rows=8, budget_blocks=200, look_s=0.01)
    much = [batch.ask(prompt_of(20, seed=n), 200, share="a") for n in range(8)]
    for _ in range(100):
        batch.step()
    little = batch.ask(prompt_of(20, seed=99), 8, share="b")
    before = len(batch.graph.steps)
    while not little.ended.is_set():
        batch.step()
    assert len(batch.scheduler.sequences) == 7, "one gave up its row"
    assert [len(read) for _, read in batch.graph.steps[before:]] == [1] * 8
    batch.finish()
    assert little.tokens == said(prompt_of(20, seed=99), 8)
    for seed, listener in enumerate(much):
        assert listener.tokens == said(prompt_of(20, seed=seed), 200)


def test_rows_that_are_given_up_are_not_read_again_from_the_beginning(batches: Batches) -> None:
    batch = batches(rows=2, budget_blocks=200)
    for seed in range(2):
        batch.ask(prompt_of(160, seed=seed), 60, share="a")
    for _ in range(20):
        batch.step()
    batch.ask([1, 2], 2, share="b")
    batch.finish()
    assert sum(sum(read) for _, read in batch.graph.steps) < 2 * (160 + 59) + 3 + BLOCK_TOKENS
