"""Requests of many adapters in one batch: each answer is the one that it would have alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError, GraphError
from fedlora.exported.profiles import Profile
from fedlora.lora.config import LoraConfig
from fedlora_serve.adapters.loading import LoadedAdapter, WeightedAdapter
from fedlora_serve.adapters.together import together
from fedlora_serve.batching.engine import BatchEngine
from fedlora_serve.batching.fair_queue import FairQueue
from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, block_bytes
from fedlora_serve.batching.request import Event, Finished, Piece, Request
from fedlora_serve.errors import BusyError
from fedlora_serve.local.engine import Engine
from fedlora_serve.text.sampling import Sampling

from tests.serve.batching.conftest import Engines
from tests.serve.batching.listening import CountedLease, Listener, ask, counted
from tests.serve.speakers import Speaker, greedy, random_prompt, speaker
from tests.tiny.tokenizer import EOS


@pytest.fixture
def version(profile: Profile) -> Callable[[Speaker], LoadedAdapter]:
    return lambda speaker: speaker.laid_out if profile == "kernel" else speaker.version


def ask_many(
    engine: BatchEngine,
    single: Engine,
    speakers: list[Speaker],
    version: Callable[[Speaker], LoadedAdapter],
    *,
    requests: int,
    seed: int,
) -> None:
    """Ask for answers of random lengths from random adapters; every one must be that of a single sequence."""
    random = np.random.default_rng(seed)
    asked = []
    for _ in range(requests):
        number = int(random.integers(0, len(speakers) + 1))
        one = speakers[number] if number < len(speakers) else None
        prompt, count = random_prompt(random, int(random.integers(1, 90))), int(random.integers(1, 40))
        asked.append((ask(engine, prompt, counted(count), version(one) if one else None), prompt, one, count))
    for listener, prompt, one, count in asked:
        end = listener.wait()
        assert (end.reason, end.completion_tokens) == ("length", count)
        assert listener.tokens == greedy(single, prompt, one, count)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_of_different_adapters_in_one_batch_are_those_of_single_sequences(
    engines: Engines,
    version: Callable[[Speaker], LoadedAdapter],
    single: Engine,
    speakers: list[Speaker],
    rows: int,
) -> None:
    ask_many(engines(rows=rows, prefill_tokens=8), single, speakers, version, requests=16, seed=rows)


def test_a_budget_for_fewer_tokens_than_are_asked_for_makes_answers_wait_and_changes_none(
    engines: Engines,
    version: Callable[[Speaker], LoadedAdapter],
    single: Engine,
    speakers: list[Speaker],
    long_base: BasePack,
) -> None:
    budget = 9 * block_bytes(long_base.shape)
    engine = engines(rows=8, cache_budget_bytes=budget)
    assert engine.max_tokens == 9 * BLOCK_TOKENS
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], engine.stats().cache_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ask_many(engine, single, speakers, version, requests=24, seed=5)
    done.set()
    watcher.join()
    assert 0 < most[0] <= budget


def test_a_prompt_that_begins_like_an_earlier_one_of_its_adapter_reads_only_the_rest(
    engines: Engines, version: Callable[[Speaker], LoadedAdapter], single: Engine, speakers: list[Speaker]
) -> None:
    engine, random = engines(rows=4), np.random.default_rng(1)
    prompt, tail = random_prompt(random, 70), random_prompt(random, 9)
    ask(engine, prompt, counted(3), version(speakers[0])).wait()
    for one, cached in ((speakers[0], 64), (speakers[1], 0), (None, 0)):
        listener = ask(engine, [*prompt, *tail], counted(8), version(one) if one else None)
        assert listener.wait().cached_tokens == cached
        assert listener.tokens == greedy(single, [*prompt, *tail], one, 8)
    assert engine.stats().prefix_hits == 64


def test_what_was_read_for_some_adapters_together_is_used_for_these_and_these_weights_alone(
    engines: Engines, version: Callable[[Speaker], LoadedAdapter], speakers: list[Speaker]
) -> None:
    engine, prompt = engines(rows=4), random_prompt(np.random.default_rng(1), 70)

    def summed(*shares: tuple[int, float]) -> LoadedAdapter:
        return together([WeightedAdapter(adapter=version(speakers[number]), weight=w) for number, w in shares])

    answers = []
    for asked, cached in (
        (summed((0, 0.7), (4, 0.3)), 0),
        (summed((4, 0.3), (0, 0.7)), 64),
        (summed((0, 0.3), (4, 0.7)), 0),
        (summed((0, 0.7), (3, 0.3)), 0),
        (summed((0, 0.7)), 0),
        (version(speakers[0]), 0),
    ):
        listener = ask(engine, prompt, counted(4), asked)
        assert listener.wait().cached_tokens == cached
        answers.append(listener.tokens)
    assert answers[0] == answers[1]


def test_answers_that_are_asked_for_at_once_share_the_prompt_that_they_have_in_common(
    engines: Engines, single: Engine
) -> None:
    engine, prompt = engines(rows=4), random_prompt(np.random.default_rng(2), 50)
    listeners = [ask(engine, prompt, counted(5)) for _ in range(4)]
    assert sorted(listener.wait().cached_tokens for listener in listeners) == [0, 48, 48, 48]
    assert all(listener.tokens == greedy(single, prompt, None, 5) for listener in listeners)


def test_a_long_prompt_does_not_stop_an_answer_that_is_going_on(engines: Engines) -> None:
    engine, prompt = engines(rows=2, prefill_tokens=4), random_prompt(np.random.default_rng(4), 200)
    short = ask(engine, [1, 2, 3], counted(200))
    while not short.events:
        time.sleep(0.001)
    before = len(short.tokens)
    ended_at: list[int] = []

    def long_ended(event: Event) -> None:
        if isinstance(event, Finished):
            ended_at.append(len(short.tokens))

    engine.submit(Request(prompt=prompt, sampling=counted(1), on_event=long_ended))
    short.wait()
    assert ended_at[0] - before > 200 // 4 - 10  # about one token of it with every four of the prompt


def test_what_the_model_ends_and_stop_strings_end_an_answer(
    engines: Engines, single: Engine, speakers: list[Speaker]
) -> None:
    engine, prompt = engines(rows=2), [1, 2, 3]
    tokens = greedy(single, prompt, None, 60)
    text = engine.tokenizer.decode(tokens, skip_special_tokens=True)
    stop = text[8:11]
    listener = ask(engine, prompt, Sampling(max_tokens=60, stop=(stop,)))
    end = listener.wait()
    if EOS not in tokens[:12]:
        assert (end.reason, listener.text) == ("stop", text[: text.index(stop)])
    biased = ask(engine, prompt, Sampling(max_tokens=60, logit_bias={EOS: 100.0}))
    assert (biased.wait().reason, biased.text, biased.wait().completion_tokens) == ("stop", "", 1)
    ignoring = ask(engine, prompt, Sampling(max_tokens=4, logit_bias={EOS: 100.0}, ignore_eos=True))
    assert (ignoring.wait().reason, ignoring.wait().completion_tokens) == ("length", 4)


def test_the_same_seed_gives_the_same_answer_whatever_else_is_in_the_batch(
    engines: Engines, version: Callable[[Speaker], LoadedAdapter], speakers: list[Speaker]
) -> None:
    engine = engines(rows=8)
    sampling = Sampling(temperature=1.5, seed=7, max_tokens=20, logprobs=2)
    alone = ask(engine, [5, 6, 7], sampling, version(speakers[2]))
    alone.wait()
    others = [ask(engine, [n, n], Sampling(temperature=1.0, max_tokens=30), version(speakers[n])) for n in range(6)]
    beside = ask(engine, [5, 6, 7], sampling, version(speakers[2]))
    beside.wait()
    assert beside.text == alone.text
    assert beside.tokens == alone.tokens
    for listener in others:
        listener.wait()


def test_a_cancelled_answer_ends_and_lets_its_adapter_go(
    engines: Engines, version: Callable[[Speaker], LoadedAdapter], speakers: list[Speaker]
) -> None:
    engine = engines(rows=1)
    running = ask(engine, [1, 2], counted(250), version(speakers[0]))
    waiting = ask(engine, [1, 2], counted(250), version(speakers[1]))
    engine.cancel(waiting.request)
    engine.cancel(running.request)
    assert waiting.wait().reason == running.wait().reason == "cancelled"
    engine.cancel(running.request)  # a second time does nothing
    after = ask(engine, [1, 2], counted(3))
    assert after.wait().reason == "length"


def test_an_adapter_whose_values_are_too_large_ends_its_own_answer_only(
    engines: Engines,
    version: Callable[[Speaker], LoadedAdapter],
    single: Engine,
    speakers: list[Speaker],
    long_base: BasePack,
) -> None:
    engine = engines(rows=4)
    wild = speaker(long_base, LoraConfig(rank=4, alpha=8.0), seed=9, size=1e30)
    bad = ask(engine, [1, 2, 3], counted(30), version(wild))
    good = ask(engine, [1, 2, 3], counted(30), version(speakers[3]))
    end = bad.wait()
    assert end.reason == "error"
    assert "rank-4" in end.message
    assert "not finite" in end.message
    good.wait()
    assert good.tokens == greedy(single, [1, 2, 3], speakers[3], 30)


def test_a_full_queue_is_busy_and_a_request_that_cannot_be_is_refused(
    engines: Engines, version: Callable[[Speaker], LoadedAdapter], speakers: list[Speaker]
) -> None:
    engine = engines(rows=1, queue=2)
    lease = CountedLease(version(speakers[0]))

    def refused(prompt: list[int], error: type[Exception], match: str, **sampling: object) -> None:
        with pytest.raises(error, match=match):
            engine.submit(
                Request(
                    prompt=prompt,
                    sampling=Sampling(**sampling),  # type: ignore[arg-type]
                    on_event=Listener(),
                    adapter=lease,
                )
            )

    refused([], ConfigError, "no tokens")
    refused([1, 300], ConfigError, "not from 0 to 257")
    refused([1] * 256, ConfigError, "256 tokens")
    assert lease.released == 3
    listeners = []
    with pytest.raises(BusyError, match="waiting already"):
        for _ in range(20):
            listeners.append(ask(engine, [1], counted(200)))  # noqa: PERF401  (it raises)
    assert 2 <= len(listeners) <= 4
    for listener in listeners:
        engine.cancel(listener.request)
        listener.wait()


def test_a_closing_engine_finishes_what_runs_and_takes_nothing_more(engines: Engines) -> None:
    engine = engines(rows=2)
    listeners = [ask(engine, [1, 2], counted(20)) for _ in range(4)]
    engine.close(60)
    assert [listener.wait().reason for listener in listeners] == ["length"] * 4
    with pytest.raises(BusyError, match="shutting down"):
        ask(engine, [1], counted(1))


def test_an_engine_that_must_close_at_once_cancels_what_runs(engines: Engines) -> None:
    engine = engines(rows=1)
    listeners = [ask(engine, [1, 2], counted(250)) for _ in range(3)]
    engine.close(0)
    assert {listener.wait().reason for listener in listeners} <= {"cancelled", "length"}


def test_a_listener_that_fails_ends_its_own_answer_only(engines: Engines) -> None:
    engine = engines(rows=2)

    def fails(event: Event) -> None:
        assert not isinstance(event, Piece), "a listener's own mistake"

    engine.submit(Request(prompt=[1, 2], sampling=counted(20), on_event=fails))
    good = ask(engine, [1, 2], counted(20))
    assert good.wait().reason == "length"


def test_a_mistake_of_our_own_ends_who_is_here_and_not_the_engine(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, mistakes = engines(rows=1), iter([True])
    admit = engine._scheduler.admit

    def fails_once(waiting: FairQueue) -> None:
        admit(waiting)
        assert not next(mistakes, False), "a mistake of our own"

    monkeypatch.setattr(engine._scheduler, "admit", fails_once)
    first, second = ask(engine, [1, 2], counted(3)), ask(engine, [1, 2], counted(3))
    assert first.wait().reason == "error"
    assert "AssertionError" in first.wait().message
    assert second.wait().reason == "length"


def test_a_folder_without_rows_says_how_to_write_them(model: Path) -> None:
    with pytest.raises(GraphError, match="--profile kernel"):
        BatchEngine(model)


def test_a_budget_below_two_blocks_is_refused(folders: dict[Profile, Path]) -> None:
    with pytest.raises(ConfigError, match="give it twice that"):
        BatchEngine(folders["rows"], cache_budget_bytes=1000)
