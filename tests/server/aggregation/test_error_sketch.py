"""The error of a round, seen through a few directions, is the dense one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.error_sketch import EXACT, ErrorSketch

LORA = LoraConfig(rank=4, alpha=8.0)


def random_adapter(shapes: dict[str, tuple[int, int]], seed: int) -> Adapter:
    generator = np.random.default_rng(seed)
    pairs = {
        module: LoraPair(
            generator.normal(size=(4, columns)).astype(np.float32), generator.normal(size=(rows, 4)).astype(np.float32)
        )
        for module, (rows, columns) in shapes.items()
    }
    return Adapter(LORA, pairs)


def dense_error(updates: list[tuple[Adapter, float]], committed: Adapter, frozen: Adapter | None) -> float:
    squared = norm = 0.0
    total = sum(weight for _, weight in updates)
    for module in committed.pairs:
        terms = [weight / total * adapter.product(module).dense().astype(np.float64) for adapter, weight in updates]
        mean = np.sum(terms, axis=0)
        if frozen is not None:
            mean = mean + frozen.product(module).dense()
        squared += float(np.sum((committed.product(module).dense() - mean) ** 2))
        norm += float(np.sum(np.square(mean)))
    return math.sqrt(squared / norm)


def sketched(
    updates: list[tuple[Adapter, float]], committed: Adapter, frozen: Adapter | None = None, seed: int = 0
) -> float:
    sketch = ErrorSketch(committed, np.random.default_rng(seed))
    for adapter, weight in updates:
        show = sketch.look(adapter, weight)
        for module in adapter.pairs:
            show(module)
        sketch.count(weight)
    return sketch.relative_error(committed, frozen)


@pytest.mark.parametrize("with_side", [False, True])
def test_the_error_is_the_dense_one_where_the_directions_are_all_there_are(with_side: bool) -> None:
    shapes = {"q_proj": (30, EXACT), "down_proj": (20, 5)}
    updates = [(random_adapter(shapes, seed), float(seed)) for seed in (1, 2, 3)]
    committed, frozen = random_adapter(shapes, 9), random_adapter(shapes, 8) if with_side else None
    assert sketched(updates, committed, frozen) == pytest.approx(dense_error(updates, committed, frozen), rel=1e-5)


def test_over_many_modules_the_error_is_within_five_percent_of_the_dense_one() -> None:
    shapes = {f"layers.{layer}.{module}": (96, 64) for layer in range(16) for module in ("q_proj", "v_proj", "up_proj")}
    updates = [(random_adapter(shapes, seed), 1.0) for seed in (1, 2, 3)]
    committed = random_adapter(shapes, 9)
    expected = dense_error(updates, committed, None)
    for seed in range(5):
        assert sketched(updates, committed, seed=seed) == pytest.approx(expected, rel=0.05)


def test_of_very_many_modules_some_are_looked_at_and_tell_the_error_within_a_tenth() -> None:
    shapes = {f"layers.{layer}.{module}": (96, 64) for layer in range(50) for module in ("q_proj", "v_proj", "up_proj")}
    updates = [(random_adapter(shapes, seed), 1.0) for seed in (1, 2, 3)]
    committed = random_adapter(shapes, 9)
    expected = dense_error(updates, committed, None)
    found = {sketched(updates, committed, seed=seed) for seed in range(5)}
    assert len(found) == 5, "others in every round"
    assert all(value == pytest.approx(expected, rel=0.1) for value in found)


def test_for_one_module_the_error_is_unbiased_and_within_a_half() -> None:
    shapes = {"q_proj": (96, 256)}
    updates, committed = [(random_adapter(shapes, seed), 1.0) for seed in (1, 2, 3)], random_adapter(shapes, 9)
    expected = dense_error(updates, committed, None)
    found = [sketched(updates, committed, seed=seed) for seed in range(40)]
    assert all(abs(value / expected - 1) < 1 / 2 for value in found)
    assert np.mean(found) == pytest.approx(expected, rel=0.03)


def test_what_is_committed_exactly_has_an_error_of_rounding_only() -> None:
    shapes = {"q_proj": (96, 256)}
    only = random_adapter(shapes, 1)
    assert sketched([(only, 3.0)], only) < 1e-6


def test_the_error_of_a_change_against_a_mean_of_nothing_is_infinite() -> None:
    shapes = {"q_proj": (10, 8)}
    only = random_adapter(shapes, 1)
    nothing = Adapter(LORA, {m: LoraPair(p.lora_A, np.zeros_like(p.lora_B)) for m, p in only.pairs.items()})
    assert sketched([(nothing, 1.0)], only) == math.inf
    assert sketched([(nothing, 1.0)], nothing) == 0


def test_the_error_against_no_updates_is_not_defined() -> None:
    only = random_adapter({"q_proj": (10, 8)}, 1)
    with pytest.raises(RunError, match="not defined"):
        ErrorSketch(only, np.random.default_rng(0)).relative_error(only)
