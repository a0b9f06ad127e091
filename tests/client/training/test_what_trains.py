"""What of an adapter trains, what stands frozen in it and beside it, and what pulls it back: against plain autograd."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.config.run import TrainConfig
from fedlora.files.tensor_file import TensorFile
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.vera import projections_of
from fedlora.lora.ranks import joined
from fedlora.wire.task import FactorSet
from fedlora_client.data.windows import IGNORED, Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.layers.batch import no_dropout
from fedlora_client.layers.dropout import SeededDropout
from fedlora_client.layers.step_plan import MemoryPlan, StepPlan
from fedlora_client.ops.compute import Compute, choose_compute
from fedlora_client.ops.ops import Ops
from fedlora_client.training.measuring import evaluate
from fedlora_client.training.planning import plan_training
from fedlora_client.training.trainer import Saving, train
from fedlora_client.training.training import Span, Training
from torch import Tensor

from tests.client.train_cases import assert_equal_bits, factors_of, windows_of
from tests.reference.agreement import assert_close
from tests.reference.dense import (
    Gradients,
    Problem,
    dense_weights,
    random_problem,
    reference_gradients,
    reference_logits,
    relative_error,
)
from tests.reference.tolerances import TIMES_OWN_ERROR
from tests.tiny.adapters import ALL_RANKS, LORAS, random_adapter
from tests.tiny.kinds import adapter_of_kind

CONFIG = TrainConfig(steps=3, batch_size=100, sequence_length=12, lr=0.02, weight_decay=0.5, max_grad_norm=0.5)
FROZEN_LORA = LoraConfig(rank=3, alpha=10.0, rank_pattern={"model.layers.1.mlp.gate_proj": 9}, use_rslora=True)
PLAN = StepPlan(micro_batch=100, memory_plan=MemoryPlan(), step_bytes=0)
FROZEN: tuple[FactorSet, ...] = ("A", "B")
# Adam divides by the gradient's size: of a few numbers, whose gradient is within rounding of 0, the sign is chance.
BY_CHANCE = 5e-3


def frozen_of(base: BasePack, seed: int = 8) -> Adapter:
    return random_adapter(base, FROZEN_LORA, seed)


def whole(windows: Windows) -> TrainConfig:
    """The configuration by which every batch is all of the windows."""
    return dataclasses.replace(CONFIG, batch_size=len(windows))


def folded(base: BasePack, frozen: Adapter) -> dict[str, Tensor]:
    """The dense weights of a base, W + gamma B A where the frozen adapter has factors."""
    weights = dense_weights(base)
    for module, pair in frozen.pairs.items():
        lora_A, lora_B = (torch.from_numpy(part.astype(np.float64)) for part in (pair.lora_A, pair.lora_B))
        weights[module] = weights[module] + frozen.config.scaling_of(module) * lora_B @ lora_A
    return weights


def adapter_of(config: LoraConfig, values: Mapping[str, Tensor]) -> Adapter:
    modules = dict.fromkeys(name.rpartition(".")[0] for name in values)
    pairs = {m: LoraPair(*(values[f"{m}.lora_{f}"].detach().numpy().copy() for f in "AB")) for m in modules}
    return Adapter(config, pairs)


def by_autograd(
    base: BasePack, adapter: Adapter, windows: Windows, config: TrainConfig, trains: FactorSet = "AB"
) -> Adapter:
    """torch's AdamW, torch's clipping, and the loss with mu / 2 ||theta - theta_0||^2, over dense weights."""
    start = {name: torch.tensor(value) for name, value in factors_of(adapter).items()}
    values = {name: value.clone() for name, value in start.items()}
    trained = {name: value for name, value in values.items() if name[-1] in trains}
    optimizer = torch.optim.AdamW(trained.values(), lr=config.rate, weight_decay=config.weight_decay)
    problem = Problem(windows.inputs, windows.targets, windows.starts, torch.ones(windows.targets.shape))
    for _ in range(config.steps):
        logits, pairs = reference_logits(base, problem, adapter_of(adapter.config, values))
        leaves = {f"{m}.lora_{f}": leaf for m, pair in pairs.items() for f, leaf in zip("AB", pair, strict=True)}
        loss = F.cross_entropy(logits.flatten(0, 1), windows.targets.flatten(), ignore_index=IGNORED)
        for name in trained:
            loss = loss + config.fedprox_mu / 2 * (leaves[name] - start[name].double()).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, value in trained.items():
            gradient = leaves[name].grad
            assert gradient is not None
            value.grad = gradient.float()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)
        optimizer.step()
    return adapter_of(adapter.config, values)


def share_off(got: Adapter, expected: Adapter, lr: float) -> float:
    """The share of the numbers that differ by more than a thousandth of a step."""
    mine, theirs = factors_of(got), factors_of(expected)
    assert mine.keys() == theirs.keys()
    return float(np.concatenate([(np.abs(mine[n] - v) > 1e-3 * lr).ravel() for n, v in theirs.items()]).mean())


def training_of(decoder: Decoder, trains: FactorSet = "AB", frozen: Adapter | None = None) -> Training:
    windows = windows_of(decoder.base)
    config = dataclasses.replace(whole(windows), max_grad_norm=0.01)
    return Training(
        decoder, [random_adapter(decoder.base, ALL_RANKS)], [windows], config, [np.random.default_rng(0)], PLAN,
        Span(0, 3), trains=trains, frozen=frozen,
    )  # fmt: skip


def gradients_of(
    decoder: Decoder, problem: Problem, adapter: Adapter, frozen: Adapter | None, dropout: SeededDropout | None = None
) -> Gradients:
    lora = decoder.lora(adapter, frozen=frozen)
    masks = dropout.of(0, 0) if dropout else no_dropout
    decoder.add_gradients(*problem, lora, decoder.workspace(), dropout=masks)
    return lora.gradients()


def first_of(gradients: Gradients, adapter: Adapter) -> Gradients:
    """The gradients in the components that `adapter` has, which come first."""
    return {m: (a[: adapter.pairs[m].rank], b[:, : adapter.pairs[m].rank]) for m, (a, b) in gradients.items()}


def assert_gradients_close(got: Gradients, expected: Gradients) -> None:
    assert got.keys() == expected.keys()
    for module, pair in expected.items():
        for mine, theirs in zip(got[module], pair, strict=True):
            assert_close(mine, theirs)


@pytest.mark.parametrize("trains", FROZEN)
def test_a_frozen_factor_keeps_its_bits_and_the_other_trains_as_in_autograd(
    decoder: Decoder, trains: FactorSet
) -> None:
    windows, adapter = windows_of(decoder.base), random_adapter(decoder.base, ALL_RANKS)
    config = whole(windows)
    result = train(decoder, adapter, windows, config, np.random.default_rng(0), trains=trains)
    for name, value in factors_of(result.adapter).items():
        assert np.array_equal(value, factors_of(adapter)[name]) == (name[-1] != trains)
    assert result.adapter.config == adapter.config
    assert (
        share_off(result.adapter, by_autograd(decoder.base, adapter, windows, config, trains), config.rate) < BY_CHANCE
    )
    # The comparison would notice a factor that trains.
    assert share_off(result.adapter, by_autograd(decoder.base, adapter, windows, config), config.rate) > 0.3


@pytest.mark.parametrize("trains", FROZEN)
def test_a_frozen_factor_has_no_gradient_no_moments_and_no_part_in_the_norm(
    decoder: Decoder, trains: FactorSet
) -> None:
    training = training_of(decoder, trains)
    assert training.optimizers.keys() == {f"lora_{trains}"}
    for factors in training.lora.modules.values():
        assert (factors.grad_A is None, factors.grad_B is None) == (trains == "B", trains == "A")
    training.run_step()
    clipped = [pair["AB".index(trains)] for pair in training.lora.gradients().values()]
    assert math.sqrt(sum(float(part.square().sum()) for part in clipped)) == pytest.approx(0.01, rel=1e-3)
    frozen = [pair["BA".index(trains)] for pair in training.lora.gradients().values()]
    assert not any(part.any() for part in frozen)


@pytest.mark.parametrize("trains", FROZEN)
def test_the_gradient_of_what_trains_does_not_depend_on_what_else_does(decoder: Decoder, trains: FactorSet) -> None:
    adapter, problem = random_adapter(decoder.base, ALL_RANKS), random_problem(decoder.base, 2, 13)
    alone, both = decoder.lora(adapter, trains=trains), decoder.lora(adapter)
    for lora in (alone, both):
        decoder.add_gradients(*problem, lora, decoder.workspace())
    which = "AB".index(trains)
    for module, pair in both.gradients().items():
        assert torch.equal(alone.gradients()[module][which], pair[which])


def test_a_state_holds_what_trains_and_nothing_else(decoder: Decoder, tmp_path: Path) -> None:
    saving = Saving(file=tmp_path / "state", every=1, keeps=True)
    windows, adapter = windows_of(decoder.base), random_adapter(decoder.base)
    train(decoder, adapter, windows, whole(windows), np.random.default_rng(0), saving=saving, trains="B")
    file = TensorFile(tmp_path / "state")
    count = sum(pair.lora_B.size for pair in adapter.pairs.values())
    assert {name: entry.shape for name, entry in file.entries.items()} == {"lora_B": (3, count)}


@pytest.mark.parametrize("config", LORAS)
def test_gradients_beside_a_frozen_adapter_are_those_over_weights_that_it_is_folded_into(
    base: BasePack, ops: Ops, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(base, Compute(torch.device("cpu"), torch.float32, ops))
    adapter, problem = random_adapter(base, LORAS[config]), random_problem(base, 2, 13)
    frozen = random_adapter(base, dataclasses.replace(FROZEN_LORA, target_modules=adapter.config.target_modules), 8)
    got = gradients_of(decoder, problem, adapter, frozen)
    weights = folded(base, frozen)
    monkeypatch.setattr("tests.reference.dense.dense_weights", lambda base: dict(weights))
    _, expected = reference_gradients(base, problem, adapter)
    assert_gradients_close(got, expected)
    monkeypatch.undo()
    _, without = reference_gradients(base, problem, adapter)
    assert relative_error(got, without) > 0.1


def test_dropout_drops_what_a_frozen_adapter_sees_as_it_drops_what_the_adapter_sees(decoder: Decoder) -> None:
    base, adapter, frozen = decoder.base, random_adapter(decoder.base, ALL_RANKS), frozen_of(decoder.base)
    problem, dropout = random_problem(base, 2, 13), SeededDropout(0.4, (3,), decoder.compute)
    _, expected = reference_gradients(base, problem, joined(adapter, frozen), dropout.of(0, 0))
    assert_gradients_close(gradients_of(decoder, problem, adapter, frozen, dropout), first_of(expected, adapter))


def test_a_frozen_adapter_in_bfloat16_is_as_exact_as_components_that_train(base: BasePack) -> None:
    decoder = Decoder(base, choose_compute("bfloat16", "on", "cpu"))
    adapter, frozen, problem = random_adapter(base, ALL_RANKS), frozen_of(base), random_problem(base, 3, 21)
    both = joined(adapter, frozen)
    expected = first_of(reference_gradients(base, problem, both)[1], adapter)
    apart = relative_error(gradients_of(decoder, problem, adapter, frozen), expected)
    together = relative_error(first_of(gradients_of(decoder, problem, both, None), adapter), expected)
    assert apart < TIMES_OWN_ERROR * together


def test_a_training_beside_a_frozen_adapter_is_that_over_weights_that_it_is_folded_into(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, windows = decoder.base, windows_of(decoder.base)
    adapter, frozen, config = random_adapter(base, ALL_RANKS), frozen_of(base), whole(windows)
    result = train(decoder, adapter, windows, config, np.random.default_rng(0), frozen=frozen)
    assert result.adapter.config == adapter.config
    without = by_autograd(base, adapter, windows, config)
    weights = folded(base, frozen)
    monkeypatch.setattr("tests.reference.dense.dense_weights", lambda base: dict(weights))
    assert share_off(result.adapter, by_autograd(base, adapter, windows, config), config.rate) < BY_CHANCE
    assert share_off(result.adapter, without, config.rate) > 0.3


def test_a_frozen_adapter_keeps_its_bits_whatever_the_weight_decay(decoder: Decoder) -> None:
    frozen = frozen_of(decoder.base)
    training = training_of(decoder, frozen=frozen)
    before = {
        m: (f.frozen.lora_A.clone(), f.frozen.scaled_B.clone()) for m, f in training.lora.modules.items() if f.frozen
    }
    assert before.keys() == frozen.pairs.keys()
    given = {name: value.copy() for name, value in factors_of(frozen).items()}
    for _ in range(3):
        training.run_step()
    for module, factors in training.lora.modules.items():
        assert factors.frozen is not None
        assert torch.equal(factors.frozen.lora_A, before[module][0])
        assert torch.equal(factors.frozen.scaled_B, before[module][1])
    assert all(np.array_equal(value, given[name]) for name, value in factors_of(frozen).items())


def test_a_measurement_with_a_frozen_adapter_is_that_of_the_two_joined(decoder: Decoder) -> None:
    windows, adapter, frozen = windows_of(decoder.base), random_adapter(decoder.base), frozen_of(decoder.base)
    beside, tokens = evaluate(decoder, adapter, windows, frozen=frozen)
    together, same = evaluate(decoder, joined(adapter, frozen), windows)
    assert_close(beside, together)
    assert tokens == same
    assert abs(beside - evaluate(decoder, adapter, windows)[0]) > 0.01


def test_a_frozen_adapter_goes_with_one_adapter_only(decoder: Decoder) -> None:
    adapter = random_adapter(decoder.base)
    with pytest.raises(AssertionError):
        decoder.lora(adapter, adapter, frozen=frozen_of(decoder.base))


def test_the_memory_of_a_plan_counts_what_trains_and_what_stands_beside(
    base: BasePack, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    with_vectors: list[bool] = []

    def remember(
        shape: object, config: object, rank: int, compute: object, memory: object, adapters: int, *, scaled: bool
    ) -> StepPlan:
        seen.append((memory.coming, rank))  # type: ignore[attr-defined]
        with_vectors.append(scaled)
        return PLAN

    monkeypatch.setattr("fedlora_client.decoder.budget.plan_step", remember)
    adapter, frozen = random_adapter(base), frozen_of(base)
    size_A = sum(pair.lora_A.nbytes for pair in adapter.pairs.values())
    prox = dataclasses.replace(CONFIG, fedprox_mu=0.1)
    plan_training(decoder, [adapter], CONFIG)
    plan_training(decoder, [adapter], CONFIG, trains="B")
    plan_training(decoder, [adapter], prox, trains="A")
    plan_training(decoder, [adapter], CONFIG, frozen=frozen)
    base_bytes, size_B = base.weights.path.stat().st_size, adapter.size_bytes - size_A
    assert [coming - base_bytes for coming, _ in seen] == [
        6 * (size_A + size_B), 2 * size_A + 6 * size_B, 7 * size_A + 2 * size_B, 6 * (size_A + size_B) + frozen.size_bytes
    ]  # fmt: skip
    assert [rank for _, rank in seen] == [4, 4, 4, 4 + 9]
    of_kinds = [adapter_of_kind(kind, base) for kind in ("ia3", "dora", "vera")]
    for other in of_kinds:
        plan_training(decoder, [other], CONFIG)
    assert with_vectors[4:] == [True, True, False]
    assert [rank for _, rank in seen[4:]] == [0, 4, 4]
    shared = sum(part.nbytes for part in projections_of(of_kinds[2], base.model))
    held = [6 * other.size_bytes + other.extra_bytes for other in of_kinds]
    assert [coming - base_bytes for coming, _ in seen[4:]] == [held[0], held[1], held[2] + shared]


@pytest.mark.parametrize("trains", ["AB", "A", "B"])
def test_fedprox_is_the_loss_with_the_distance_from_the_start(decoder: Decoder, trains: FactorSet) -> None:
    windows, adapter = windows_of(decoder.base), random_adapter(decoder.base, ALL_RANKS)
    config = dataclasses.replace(whole(windows), steps=4, fedprox_mu=2.0, weight_decay=0.0)
    result = train(decoder, adapter, windows, config, np.random.default_rng(0), trains=trains)
    assert (
        share_off(result.adapter, by_autograd(decoder.base, adapter, windows, config, trains), config.rate) < BY_CHANCE
    )
    other = dataclasses.replace(config, fedprox_mu=0.0)
    assert share_off(result.adapter, by_autograd(decoder.base, adapter, windows, other, trains), config.rate) > 0.3


def test_the_stronger_fedprox_the_nearer_a_training_stays_to_its_start(decoder: Decoder) -> None:
    windows, adapter = windows_of(decoder.base), random_adapter(decoder.base)
    start = factors_of(adapter)

    def distance(mu: float) -> float:
        config = dataclasses.replace(whole(windows), steps=12, weight_decay=0.0, fedprox_mu=mu)
        result = train(decoder, adapter, windows, config, np.random.default_rng(0))
        return math.sqrt(sum(float(np.square(v - start[n]).sum()) for n, v in factors_of(result.adapter).items()))

    free, some, strong = map(distance, (0.0, 0.3, 10.0))
    assert free > 1.1 * some > 1.1 * 1.1 * strong > 0


def test_the_first_step_of_fedprox_is_that_without_it_and_the_loss_it_tells_is_the_texts(decoder: Decoder) -> None:
    windows, adapter = windows_of(decoder.base), random_adapter(decoder.base)
    one = dataclasses.replace(whole(windows), steps=1)
    plain, pulled = (
        train(decoder, adapter, windows, config, np.random.default_rng(0))
        for config in (one, dataclasses.replace(one, fedprox_mu=100.0))
    )
    assert_equal_bits(plain.adapter, pulled.adapter)
    assert plain.losses == pulled.losses
