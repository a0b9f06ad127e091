"""Steps of training: the rates that AdamW gets, gradients in parts, and adapters side by side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fedlora.config.run import LoraSection, RunConfig, TrainConfig
from fedlora.errors import DataError
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.data.windows import Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.layers.step_plan import MemoryPlan, StepPlan
from fedlora_client.training.adamw import AdamW
from fedlora_client.training.learning_rate import learning_rate
from fedlora_client.training.stack import train_stack
from fedlora_client.training.trainer import TrainResult, train
from fedlora_client.training.training import Span, Training

from tests.client.train_cases import TEXT, assert_equal_bits, factors_of, windows_of
from tests.reference.agreement import assert_close
from tests.tiny.adapters import ALL_RANKS, random_adapter

CONFIG = TrainConfig(steps=3, batch_size=5, sequence_length=12, lr=3e-3)
SPAN = Span(0, 3)
PLAN = StepPlan(micro_batch=5, memory_plan=MemoryPlan(), step_bytes=0)


def training_of(
    decoder: Decoder, config: TrainConfig, plan: StepPlan = PLAN, span: Span = SPAN, adapter: Adapter | None = None
) -> Training:
    adapter = adapter or random_adapter(decoder.base)
    windows, generator = windows_of(decoder.base), np.random.default_rng(0)
    return Training(decoder, [adapter], [windows], config, [generator], plan, span)


def moved(before: Adapter, after: Adapter, kind: str) -> float:
    """The mean distance that the numbers of every A, or of every B, went."""
    distances = [
        np.abs(value - factors_of(before)[name]).ravel()
        for name, value in factors_of(after).items()
        if name.endswith(kind)
    ]
    return float(np.concatenate(distances).mean())


def test_no_more_windows_of_a_step_are_copied_at_a_time_than_are_computed(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    batch = Windows.batch

    def seen(windows: Windows, rows: torch.Tensor) -> Windows:
        sizes.append(len(rows))
        return batch(windows, rows)

    monkeypatch.setattr(Windows, "batch", seen)
    config = dataclasses.replace(CONFIG, batch_size=13)
    training = training_of(decoder, config, dataclasses.replace(PLAN, micro_batch=2))
    training.run_step()
    assert sizes == [2, 2, 2, 2, 2, 2, 1]


def test_adamw_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    value, gradient = torch.randn(50, generator=generator), torch.zeros(50)
    theirs = torch.nn.Parameter(value.clone())
    oracle = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3)
    mine = AdamW(value, gradient, 0.3)
    for number in range(1, 20):
        lr = 0.1 / number
        gradient.copy_(torch.randn(50, generator=generator))
        gradient[:5] = 0
        theirs.grad, oracle.param_groups[0]["lr"] = gradient.clone(), lr
        oracle.step()
        mine.step(lr, number)
        assert_close(mine.value, theirs)


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_in_the_first_step_b_moves_ratio_times_as_far_as_a(decoder: Decoder, ratio: float) -> None:
    # The first step of Adam is the rate in the direction of the sign.
    adapter = random_adapter(decoder.base)
    config = dataclasses.replace(CONFIG, lora_plus_ratio=ratio)
    training = training_of(decoder, config, adapter=adapter)
    training.run_step()
    after = training.lora.adapter()
    assert moved(adapter, after, "lora_A") == pytest.approx(config.rate, rel=1e-2)
    assert moved(adapter, after, "lora_B") == pytest.approx(ratio * config.rate, rel=1e-2)


def test_the_rate_of_a_step_follows_from_its_place_in_the_whole_run(decoder: Decoder) -> None:
    adapter = random_adapter(decoder.base)
    config = dataclasses.replace(CONFIG, schedule="cosine", warmup_steps=2)
    for first_step in (0, 1, 5, 8):
        training = training_of(decoder, config, span=Span(first_step, 9), adapter=adapter)
        training.run_step()
        expected = learning_rate(config, first_step, 9)
        assert moved(adapter, training.lora.adapter(), "lora_A") == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("kept_blocks", [0, 1])
def test_a_batch_in_parts_is_the_batch_as_a_whole(decoder: Decoder, micro_batch: int, kept_blocks: int) -> None:
    whole = training_of(decoder, CONFIG)
    plan = StepPlan(
        micro_batch=micro_batch, memory_plan=MemoryPlan(kept_blocks=kept_blocks, chunk_rows=16), step_bytes=0
    )
    in_parts = training_of(decoder, CONFIG, plan)
    ((expected_loss, expected_tokens),), ((loss, tokens),) = whole.run_step(), in_parts.run_step()
    assert_close(loss, expected_loss)
    assert tokens == expected_tokens
    for module, pair in whole.lora.gradients().items():
        for mine, theirs in zip(in_parts.lora.gradients()[module], pair, strict=True):
            assert_close(mine, theirs)


def test_each_token_counts_the_same_whichever_part_it_is_in(decoder: Decoder) -> None:
    # The last window of the text is mostly padding: a mean of the parts' means would be another number.
    windows = windows_of(decoder.base, TEXT[:25])
    config = dataclasses.replace(CONFIG, steps=1, batch_size=len(windows))
    plan = dataclasses.replace(PLAN, micro_batch=1)
    training = Training(
        decoder, [random_adapter(decoder.base)], [windows], config, [np.random.default_rng(0)], plan, Span(0, 1)
    )
    ((loss, tokens),) = training.run_step()
    lora = decoder.lora(random_adapter(decoder.base))
    losses = decoder.losses(windows.inputs, windows.targets, windows.starts, lora, decoder.workspace())
    assert tokens == windows.learned_tokens == 25
    assert_close(loss, losses.sum() / 25)


def test_a_loss_that_is_not_finite_leaves_the_adapter_of_the_step_before(decoder: Decoder) -> None:
    training = training_of(decoder, CONFIG)
    training.run_step()
    before = training.lora.adapter()
    training.lora.modules["model.layers.0.mlp.up_proj"].lora_B[0, 3, 1] = np.inf
    broken = training.lora.adapter()
    with pytest.raises(DataError, match=r"^step 2: the loss is nan; lower train\.lr \(0\.003\)$"):
        training.run_step()
    assert training.step == 1
    assert_equal_bits(training.lora.adapter(), broken)
    assert np.isfinite(before.pairs["model.layers.0.mlp.up_proj"].lora_B).all()


def test_dropout_changes_the_training_and_no_measurement(decoder: Decoder) -> None:
    results = [
        train(
            decoder, random_adapter(decoder.base), windows_of(decoder.base),
            dataclasses.replace(CONFIG, dropout=rate), np.random.default_rng(0),
        )
        for rate in (0.0, 0.3, 0.3)
    ]  # fmt: skip
    assert results[1].losses == results[2].losses
    assert_equal_bits(results[1].adapter, results[2].adapter)
    assert results[0].losses != results[1].losses


def test_a_rank_and_an_alpha_of_a_modules_own_train(decoder: Decoder) -> None:
    section = LoraSection(
        rank=2, alpha=4.0, rank_pattern=("down_proj=5", "layers.0.mlp.down_proj=3"), alpha_pattern=("q_proj=9.0",)
    )
    adapter = RunConfig(lora=section).first_adapter(decoder.base)
    trained = train(decoder, adapter, windows_of(decoder.base), CONFIG, np.random.default_rng(0)).adapter
    ranks = {module: pair.rank for module, pair in trained.pairs.items()}
    assert ranks.pop("model.layers.0.mlp.down_proj") == 3
    assert ranks.pop("model.layers.1.mlp.down_proj") == 5
    assert set(ranks.values()) == {2}
    assert trained.config.scaling_of("model.layers.1.self_attn.q_proj") == 4.5
    assert trained.config.scaling_of("model.layers.1.self_attn.k_proj") == 2.0
    assert not any(np.array_equal(value, factors_of(adapter)[name]) for name, value in factors_of(trained).items())


def assert_same_training(got: TrainResult, expected: TrainResult, lr: float) -> None:
    """Adam divides by the gradient's size: a few numbers may have gone the other way, within rounding of 0."""
    assert_close(np.array(got.losses), np.array(expected.losses))
    assert got.tokens == expected.tokens
    assert got.adapter.config == expected.adapter.config
    mine, theirs = factors_of(got.adapter), factors_of(expected.adapter)
    off = np.concatenate([(np.abs(mine[name] - value) > 1e-2 * lr).ravel() for name, value in theirs.items()])
    assert float(off.mean()) < 1e-2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_a_stack_trains_each_adapter_as_it_trains_alone(decoder: Decoder, max_grad_norm: float, dropout: float) -> None:
    base = decoder.base
    configs = (ALL_RANKS, LoraConfig(rank=2, alpha=9.0), LoraConfig(rank=6, alpha=4.0, use_rslora=True))
    adapters = [random_adapter(base, config, seed) for seed, config in enumerate(configs)]
    windows = [windows_of(base, text * 3) for text in (TEXT, TEXT.upper(), TEXT[::-1] * 2)]
    config = dataclasses.replace(CONFIG, max_grad_norm=max_grad_norm, dropout=dropout, lora_plus_ratio=4.0)
    stacked = train_stack(decoder, adapters, windows, config, [np.random.default_rng(seed) for seed in range(3)])
    for seed, (adapter, own) in enumerate(zip(adapters, windows, strict=True)):
        alone = train(decoder, adapter, own, config, np.random.default_rng(seed))
        assert_same_training(stacked[seed], alone, config.rate)
    assert len({result.losses for result in stacked}) == 3
