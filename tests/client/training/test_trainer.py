"""Training on a device's windows: what is read, what AdamW makes of it, and what is never touched."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack, open_pack
from fedlora.config.run import TrainConfig
from fedlora.errors import DataError
from fedlora.lora.adapter import Adapter
from fedlora_client.data.windows import IGNORED, Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.native_ops import NativeOps
from fedlora_client.training.measuring import evaluate
from fedlora_client.training.trainer import Watcher, train
from numpy.typing import NDArray
from torch import Tensor

from tests.client.train_cases import TEXT, assert_equal_bits, factors_of, windows_of
from tests.reference.agreement import assert_close
from tests.reference.oracles import peft_oracle
from tests.tiny.adapters import ALL_RANKS, random_adapter
from tests.tiny.llamas import VARIANTS, Packs

CONFIG = TrainConfig(steps=4, batch_size=3, sequence_length=12, lr=3e-3, max_grad_norm=0.0)


class Recording(Decoder):
    """A decoder that remembers what it was asked to learn from."""

    def __init__(self, base: BasePack, compute: Compute) -> None:
        super().__init__(base, compute)
        self.batches: list[Tensor] = []

    def add_gradients(self, tokens: Tensor, *others: Any) -> Tensor:
        self.batches.append(tokens.clone())
        return super().add_gradients(tokens, *others)


def test_the_loss_on_a_repeated_text_falls(base: BasePack, decoder: Decoder) -> None:
    windows = windows_of(base)
    adapter = random_adapter(base)
    config = dataclasses.replace(CONFIG, steps=25, batch_size=4, lr=0.01)
    before, _ = evaluate(decoder, adapter, windows)
    result = train(decoder, adapter, windows, config, np.random.default_rng(0))
    after, _ = evaluate(decoder, result.adapter, windows)
    assert len(result.losses) == 25
    assert after < 0.5 * before
    assert np.mean(result.losses[-5:]) < 0.5 * np.mean(result.losses[:5])


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(base: BasePack, decoder: Decoder) -> None:
    windows, adapter = windows_of(base), random_adapter(base)
    first, second, other = (train(decoder, adapter, windows, CONFIG, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert_equal_bits(first.adapter, second.adapter)
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_training_changes_every_factor_and_leaves_the_given_adapter_alone(base: BasePack, decoder: Decoder) -> None:
    adapter = random_adapter(base, ALL_RANKS)
    before = {name: value.copy() for name, value in factors_of(adapter).items()}
    result = train(decoder, adapter, windows_of(base), CONFIG, np.random.default_rng(0))
    assert all(np.array_equal(value, before[name]) for name, value in factors_of(adapter).items())
    assert not any(np.array_equal(value, before[name]) for name, value in factors_of(result.adapter).items())
    assert result.adapter.config == adapter.config


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_and_writing_to_a_view_never_change_the_pack_on_disk(
    packs: Packs, compute: Compute, variant: str
) -> None:
    pack = packs(VARIANTS[variant])
    digests = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in pack.directory.iterdir()}
    opened = open_pack(pack.directory)
    decoder = Decoder(opened, compute)
    train(
        decoder,
        random_adapter(pack, ALL_RANKS if pack.shape.num_layers > 1 else None),
        windows_of(pack),
        CONFIG,
        np.random.default_rng(0),
    )
    evaluate(decoder, None, windows_of(pack))
    opened.matrix("model.embed_tokens").qweight[:] = 7  # a private mapping: this stays here
    assert {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in pack.directory.iterdir()} == digests
    assert open_pack(pack.directory).fingerprint == pack.fingerprint


def test_a_loss_that_is_not_finite_is_refused_by_its_step(base: BasePack, compute: Compute) -> None:
    class Breaking(Recording):
        def add_gradients(self, tokens: Tensor, *others: Any) -> Tensor:
            losses = super().add_gradients(tokens, *others)
            return losses * math.nan if len(self.batches) == 3 else losses

    seen: list[int] = []
    with pytest.raises(DataError, match=r"^step 3: the loss is nan; lower train\.lr \(0\.003\)$"):
        train(
            Breaking(base, compute), random_adapter(base), windows_of(base), CONFIG, np.random.default_rng(0),
            Watcher(on_step=lambda step, loss: seen.append(step)),
        )  # fmt: skip
    assert seen == [0, 1]


def test_every_window_is_read_once_before_any_is_read_again(base: BasePack, compute: Compute) -> None:
    windows = windows_of(base, length=11)
    count = len(windows)
    assert count == 13
    decoder = Recording(base, compute)
    config = dataclasses.replace(CONFIG, steps=13, batch_size=3)  # three passes, whose ends fall inside a batch
    train(decoder, random_adapter(base), windows, config, np.random.default_rng(0))
    rows = [tuple(row) for batch in decoder.batches for row in batch.tolist()]
    expected = sorted(tuple(row) for row in windows.inputs.tolist())
    passes = [rows[start : start + count] for start in range(0, len(rows), count)]
    assert len(passes) == 3
    assert all(sorted(one) == expected for one in passes)
    assert passes[0] != passes[1]


def test_a_batch_larger_than_the_data_repeats_it(base: BasePack, compute: Compute) -> None:
    decoder = Recording(base, compute)
    windows = windows_of(base, "abcdef", 12)
    config = dataclasses.replace(CONFIG, steps=2, batch_size=3)
    result = train(decoder, random_adapter(base), windows, config, np.random.default_rng(0))
    assert [len(batch) for batch in decoder.batches] == [3, 3]
    assert result.tokens == 2 * 3 * 6


def test_tokens_and_losses_are_counted_step_by_step(base: BasePack, decoder: Decoder) -> None:
    windows = windows_of(base)
    config = dataclasses.replace(CONFIG, steps=5, batch_size=len(windows))
    told: list[tuple[int, float]] = []
    result = train(
        decoder, random_adapter(base), windows, config, np.random.default_rng(0),
        Watcher(on_step=lambda step, loss: told.append((step, loss))),
    )  # fmt: skip
    assert told == list(enumerate(result.losses))
    assert result.tokens == 5 * len(TEXT * 3)  # each byte is a target once a pass, padding never
    first, _ = evaluate(decoder, random_adapter(base), windows)
    assert_close(result.losses[0], first)


def test_a_measurement_in_bounded_memory_is_the_same_measurement(base: BasePack, decoder: Decoder) -> None:
    windows = windows_of(base, TEXT * 5, 9)
    free, tokens = evaluate(decoder, random_adapter(base), windows)
    bounded, same = evaluate(decoder, random_adapter(base), windows, memory_mb=500)
    assert_close(bounded, free)
    assert tokens == same


def test_evaluate_equals_a_slow_loop_over_the_tokens(
    base: BasePack, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeOps, "rows", 64)
    windows = windows_of(base, TEXT * 5, 9)
    assert len(windows) > 2 * 64 // 9  # more than two batches of the evaluation
    for adapter in (None, random_adapter(base)):
        lora = None if adapter is None else decoder.lora(adapter)
        total, count = 0.0, 0
        for inputs, targets in zip(windows.inputs, windows.targets, strict=True):
            scores = decoder.logits(inputs[None], lora)[0].double().numpy()
            for row, target in zip(scores, targets.tolist(), strict=True):
                if target != IGNORED:
                    total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
                    count += 1
        loss, tokens = evaluate(decoder, adapter, windows)
        assert tokens == count == len(TEXT * 5)
        assert_close(loss, total / count)


def gradients(decoder: Decoder, adapter: Adapter, values: Mapping[str, NDArray[np.float64]], windows: Windows) -> Any:
    """{tensor name: gradient} of the mean loss over all windows, in float64."""
    lora = decoder.lora(adapter)
    for name, tensor in by_name(lora.values()).items():
        tensor.copy_(torch.from_numpy(values[name]))
    scale = torch.full(windows.targets.shape, 1 / windows.learned_tokens)
    decoder.add_gradients(windows.inputs, windows.targets, windows.starts, scale, lora, decoder.workspace())
    return {name: tensor.numpy().astype(np.float64) for name, tensor in by_name(lora.gradients()).items()}


def by_name(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """{tensor name: tensor}, as `factors_of` names them."""
    return {
        f"{module}.{name}": tensor
        for module, pair in pairs.items()
        for name, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }


def adamw_by_hand(
    decoder: Decoder, adapter: Adapter, windows: Windows, config: TrainConfig
) -> tuple[dict[str, NDArray[np.float64]], list[float]]:
    """AdamW (arXiv:1711.05101) with clipping by the norm over all factors, in float64; and that norm of each step.

    Each batch is all of the windows.
    """
    values = {name: value.astype(np.float64) for name, value in factors_of(adapter).items()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    norms = []
    for step in range(1, config.steps + 1):
        grads = gradients(decoder, adapter, values, windows)
        assert grads.keys() == values.keys()
        norms.append(math.sqrt(sum(float(np.square(grad).sum()) for grad in grads.values())))
        shrink = min(1.0, config.max_grad_norm / norms[-1]) if config.max_grad_norm else 1.0
        for name, grad in grads.items():
            grad = grad * shrink
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            decayed = values[name] * (1 - config.rate * config.weight_decay)
            values[name] = decayed - config.rate * mean / (np.sqrt(square) + 1e-8)
    return values, norms


def share_off(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], lr: float) -> float:
    """The share of the numbers that differ by more than a thousandth of a step.

    Adam divides by the gradient's size: where that is within rounding of 0, the sign of the step is chance.
    """
    assert got.keys() == expected.keys()
    off = np.concatenate([(np.abs(got[name] - expected[name]) > 1e-3 * lr).ravel() for name in got])
    return float(off.mean())


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("limit", [0.0, 0.6, 1e9], ids=["off", "reached", "never-reached"])
def test_clipping_and_weight_decay_equal_adamw_by_hand(
    base: BasePack, decoder: Decoder, limit: float, weight_decay: float
) -> None:
    windows, adapter = windows_of(base, TEXT, 12), random_adapter(base)
    config = dataclasses.replace(
        CONFIG, steps=4, batch_size=len(windows), lr=0.02, weight_decay=weight_decay, max_grad_norm=limit
    )
    result = train(decoder, adapter, windows, config, np.random.default_rng(0))
    expected, norms = adamw_by_hand(decoder, adapter, windows, config)
    got = factors_of(result.adapter)
    assert share_off(got, expected, config.rate) < 2e-3
    for other in (
        dataclasses.replace(config, max_grad_norm=0.0 if limit == 0.6 else 0.6),
        dataclasses.replace(config, weight_decay=0.5 - weight_decay),
    ):
        # The comparison would notice the other setting.
        wrong, norms = adamw_by_hand(decoder, adapter, windows, other)
        assert share_off(got, wrong, config.rate) > 0.5
    assert min(norms) > 0


def test_one_step_equals_torchs_adamw_on_pefts_parameters(base: BasePack, decoder: Decoder) -> None:
    windows, adapter = windows_of(base, TEXT, 12), random_adapter(base, ALL_RANKS)
    config = dataclasses.replace(CONFIG, steps=1, batch_size=len(windows), lr=0.01, weight_decay=0.1, max_grad_norm=0.5)
    model, parameters = peft_oracle(base, adapter)
    trainable = [factor for pair in parameters.values() for factor in pair]
    optimizer = torch.optim.AdamW(trainable, lr=config.rate, weight_decay=config.weight_decay)
    logits = model(windows.inputs).logits
    F.cross_entropy(logits.flatten(0, 1), windows.targets.flatten(), ignore_index=IGNORED).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
    optimizer.step()
    expected = {name: factor.detach().numpy() for name, factor in by_name(parameters).items()}
    result = train(decoder, adapter, windows, config, np.random.default_rng(0))
    assert share_off(factors_of(result.adapter), expected, config.rate) < 2e-3
    assert share_off(factors_of(adapter), expected, config.rate) > 0.9
