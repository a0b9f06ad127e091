"""Every row of a step has the scores of the graph of one sequence, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.combine.combining import combine
from fedlora.combine.ways import Combination
from fedlora.errors import GraphError
from fedlora.exported.profiles import Profile
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.row_lora.library import row_lora
from fedlora_serve.adapters.loading import LoadedAdapter, WeightedAdapter
from fedlora_serve.adapters.together import together
from fedlora_serve.batching.kv_cache import KVCache
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.row_session import open_rows
from fedlora_serve.local.engine import Engine

from tests.reference.agreement import assert_close
from tests.serve.speakers import Speaker, random_prompt


@pytest.fixture
def graph(folders: dict[Profile, Path], profile: Profile) -> RowGraph:
    base = open_pack(folders[profile])
    opened = open_rows(base, threads=1)
    assert opened.manifest.profile == profile
    kv_cache = KVCache(base.shape, 8, 8)
    return RowGraph(opened.session, base.shape, kv_cache, opened.adapters)


@contextmanager
def joined(graph: RowGraph, versions: Sequence[LoadedAdapter | None]) -> Iterator[None]:
    """The process has one table of adapters, which other tests find empty."""
    adapters = [version for version in versions if version]
    for version in adapters:
        graph.adapters.join(version)
    yield
    for version in adapters:
        graph.adapters.leave(version)


def version_for(speaker: Speaker, profile: Profile) -> LoadedAdapter:
    return speaker.laid_out if profile == "kernel" else speaker.version


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_any_adapters_and_lengths_have_the_scores_of_single_sequences(
    graph: RowGraph, profile: Profile, single: Engine, speakers: list[Speaker], seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 9))
    chosen = [speakers[i] if i < len(speakers) else None for i in random.integers(0, len(speakers) + 2, count)]
    versions = [version_for(speaker, profile) if speaker else None for speaker in chosen]
    singles = [single.start(speaker.version if speaker else None) for speaker in chosen]
    with joined(graph, versions):
        for _ in range(4):  # parts of prompts, single tokens and nothing, side by side
            reads = [random_prompt(random, int(n)) for n in random.choice([0, 1, 1, 5, 17], count)]
            if not any(reads):
                continue
            rows = zip(reads, singles, versions, strict=True)
            scores = graph.step(0, [Part(read, one.length, version) for read, one, version in rows])
            for row, (read, one) in enumerate(zip(reads, singles, strict=True)):
                if read:
                    assert_close(scores[row], one.step(read))


def test_several_adapters_of_a_row_have_the_scores_of_what_fedlora_combine_makes_of_them(
    graph: RowGraph, profile: Profile, single: Engine, speakers: list[Speaker], long_base: BasePack, tmp_path: Path
) -> None:
    chosen, weights = [speakers[2], speakers[4], speakers[6]], (0.7, -0.3, 1.5)  # one is on some modules alone
    for number, speaker in enumerate(chosen):
        content = PeftDirectory(adapter=speaker.adapter, base_fingerprint=long_base.fingerprint)
        write_peft(tmp_path / str(number), content)
    combine([tmp_path / str(n) for n in range(3)], tmp_path / "made", Combination(weights=weights, how="cat"))
    expected = single.load_adapter(tmp_path / "made")
    parts = [
        WeightedAdapter(adapter=replace(version_for(speaker, profile), name=str(number)), weight=weight)
        for number, (speaker, weight) in enumerate(zip(chosen, weights, strict=True))
    ]
    whole, alone, half = together(parts), parts[1].adapter, together([replace(parts[1], weight=0.5)])
    versions = [whole, alone, None, whole, half]
    singles = [single.start(each) for each in (expected, chosen[1].version, None, expected)]
    random, before = np.random.default_rng(7), dict(row_lora()._layouts) if profile == "kernel" else {}
    with joined(graph, versions):
        for length in (17, 1, 1):
            reads = [random_prompt(random, length) for _ in versions]
            at = singles[0].length
            scores = graph.step(
                0, [Part(read, at, version) for read, version in zip(reads, versions, strict=True)]
            ).copy()
            for row, one in enumerate(singles):
                assert_close(scores[row], one.step(reads[row]))
            assert np.abs(scores[4] - scores[1]).max() > 1e-3
    assert profile == "rows" or row_lora()._layouts == before


def test_a_step_of_some_rows_leaves_the_others_as_they_are(
    graph: RowGraph, profile: Profile, single: Engine, speakers: list[Speaker]
) -> None:
    random = np.random.default_rng(3)
    first, other = random_prompt(random, 9), random_prompt(random, 30)
    version = version_for(speakers[4], profile)
    with joined(graph, [version]):
        graph.step(0, [Part(first, 0, version), Part(first, 0, None)])
        graph.step(1, [Part(other, 0, None)])  # takes the second row anew
        expected = single.start(speakers[4].version)
        expected.step(first)
        scores = graph.step(0, [Part([7], 9, version)])
        assert_close(scores[0], expected.step([7]))


def test_the_scores_of_steps_of_any_number_of_rows_take_the_memory_of_one(graph: RowGraph) -> None:
    one, two = graph.step(1, [Part([1], 0, None)]), graph.step(0, [Part([1], 0, None), Part([2], 0, None)])
    assert np.shares_memory(one, two)


def test_a_part_wider_than_what_another_row_of_the_step_has_left_is_refused(graph: RowGraph) -> None:
    almost_full = Part([1], graph._kv_cache.capacity - 1, None)
    graph.step(0, [almost_full, Part([2], 0, None)])
    with pytest.raises(GraphError, match="does not run a step of 2 rows"):
        graph.step(0, [almost_full, Part([2, 3], 0, None)])
