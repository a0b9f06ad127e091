"""Rows of LoRA, of prompts, of prefixes and without an adapter in one batch: each is what it is alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import LoraSection
from fedlora.errors import ConfigError
from fedlora.exported.cache_prefix import prefix_heads
from fedlora.exported.profiles import Profile
from fedlora_client.reference import logits as torch_logits
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_serve.adapters.loading import LoadedAdapter, load_adapter
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.kv_cache import BLOCK_TOKENS, block_bytes
from fedlora_serve.local.engine import Engine

from tests.reference.agreement import assert_close
from tests.serve.batching.conftest import Engines
from tests.serve.batching.listening import ask, counted
from tests.serve.speakers import Speaker, greedy, random_prompt
from tests.tiny.kinds import adapter_of_kind

COUNTS = {"prompt": 21, "prefix": 6}  # virtual tokens: more than a block, and fewer


@pytest.fixture(scope="module")
def files(long_base: BasePack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter file of each kind that has virtual tokens."""
    folder, made = tmp_path_factory.mktemp("virtual"), {}
    for kind, count in COUNTS.items():
        adapter = adapter_of_kind(kind, long_base, section=LoraSection(method=kind, num_virtual_tokens=count))
        made[kind] = folder / f"{kind}.onnx_adapter"
        heads = prefix_heads(adapter, long_base, kind)
        write_onnx_adapter(adapter, long_base.fingerprint, made[kind], heads=heads)
    return made


@pytest.fixture(scope="module")
def virtual(long_base: BasePack, files: dict[str, Path], speakers: list[Speaker]) -> dict[str, Speaker]:
    """As speakers: the same for every graph."""
    found = {}
    for kind, path in files.items():
        loaded = load_adapter(path, long_base, layout="float32")
        found[kind] = replace(speakers[0], version=loaded, laid_out=loaded)
    return found


def version(speaker: Speaker | None, profile: Profile) -> LoadedAdapter | None:
    if speaker is None:
        return None
    return speaker.laid_out if profile == "kernel" else speaker.version


@pytest.mark.parametrize("options", [{"rows": 5, "prefill_tokens": 8}, {"rows": 8, "blocks": 10}])
def test_answers_of_every_kind_in_one_batch_are_those_of_single_sequences(
    engines: Engines, profile: Profile, single: Engine, speakers: list[Speaker], virtual: dict[str, Speaker],
    long_base: BasePack, options: dict[str, int],
) -> None:  # fmt: skip
    """With little memory some are preempted, and begin with their virtual tokens again."""
    blocks, random = options.get("blocks"), np.random.default_rng(7)
    budget = {"cache_budget_bytes": blocks * block_bytes(long_base.shape)} if blocks else {}
    engine = engines(**{name: value for name, value in options.items() if name != "blocks"}, **budget)
    asked = []
    for number in range(12):
        one = (speakers[3], virtual["prompt"], virtual["prefix"], None)[number % 4]
        prompt, count = random_prompt(random, int(random.integers(1, 70))), int(random.integers(2, 25))
        asked.append((ask(engine, prompt, counted(count), version(one, profile)), prompt, one, count))
    for listener, prompt, one, count in asked:
        end = listener.wait()
        assert (end.reason, end.completion_tokens) == ("length", count)
        assert listener.tokens == greedy(single, prompt, one, count)


@pytest.mark.parametrize("kind", COUNTS)
def test_one_sequence_has_torchs_scores(single: Engine, virtual: dict[str, Speaker], kind: str) -> None:
    prompt = random_prompt(np.random.default_rng(3), 40)
    section = LoraSection(method=kind, num_virtual_tokens=COUNTS[kind])
    adapter = adapter_of_kind(kind, single.base, section=section)
    scores = single.start(virtual[kind].version).step(prompt)
    assert_close(scores, torch_logits(single.base, np.array([prompt]), adapter)[0, -1])


def test_a_kept_beginning_is_found_after_the_virtual_tokens_of_the_same_adapter_alone(
    engines: Engines, profile: Profile, single: Engine, virtual: dict[str, Speaker]
) -> None:
    engine, random = engines(rows=4), np.random.default_rng(1)
    prompt, tail = random_prompt(random, 40), random_prompt(random, 5)
    ask(engine, prompt, counted(3), version(virtual["prompt"], profile)).wait()
    for kind, cached in (("prompt", 32), ("prefix", 0), (None, 0)):
        one = virtual[kind] if kind else None
        listener = ask(engine, [*prompt, *tail], counted(4), version(one, profile))
        assert listener.wait().cached_tokens == cached
        assert listener.tokens == greedy(single, [*prompt, *tail], one, 4)
    stats = engine.stats()
    assert (stats.prefix_lookups, stats.prefix_hits) == (39 + 3 * 44, 32)


def test_virtual_tokens_take_room_in_the_context_and_a_refusal_says_so(
    engines: Engines, profile: Profile, virtual: dict[str, Speaker]
) -> None:
    engine, adapter = engines(rows=1), version(virtual["prompt"], profile)
    room = 256 - COUNTS["prompt"]
    listener = ask(engine, [1] * (room - 2), counted(9), adapter)
    assert (listener.wait().reason, listener.wait().completion_tokens) == ("length", 2)
    with pytest.raises(ConfigError, match=f"has {room} tokens and its adapter 21 virtual ones; .* have room for 256"):
        ask(engine, [1] * room, counted(1), adapter)


def test_a_store_counts_the_keys_and_values_and_reads_them_again_as_they_were(
    long_base: BasePack, files: dict[str, Path]
) -> None:
    one, other = files.values()
    token = block_bytes(long_base.shape) // BLOCK_TOKENS
    store = AdapterStore(long_base, budget_bytes=COUNTS["prompt"] * token, layout="float32")  # room for the larger one
    digest = store.load("one", one).digest
    assert store.stats().resident_bytes == COUNTS["prompt"] * token
    store.load("other", other, pin=False)
    status = store.status("one")
    assert status is not None
    assert (status.resident, status.rank, store.stats().evictions) == (False, 0, 1)
    lease = store.lease("one")
    assert lease.version.digest == digest
    assert lease.version.prefix is not None
    assert not lease.version.prefix.flags.writeable
    store.unload("one")
    lease.release()
    assert store.stats().resident_bytes == 0
