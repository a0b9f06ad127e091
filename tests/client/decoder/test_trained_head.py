"""A head that trains in place of the base's: its gradient, its place in a training, and what stays the base's."""

# V vocabulary, H hidden size

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.config.run import TrainConfig
from fedlora.family import EMBEDDING, HEAD
from fedlora.lora.adapter import Adapter, with_extras
from fedlora_client.data.windows import IGNORED
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.decoder.dense_decoder import dense_logits
from fedlora_client.ops.compute import Compute
from fedlora_client.training.trainer import Saving, TrainResult, Watcher, train
from numpy.typing import NDArray
from torch import Tensor

from tests.client.train_cases import assert_equal_bits, windows_of
from tests.reference.agreement import assert_close
from tests.reference.dense import Problem, dense_weights, random_problem, reference_gradients
from tests.tiny.adapters import random_adapter
from tests.tiny.families import family_pack
from tests.tiny.llamas import DEFAULT, Packs, Variant

WEIGHT = f"{HEAD}.weight"
CONFIG = TrainConfig(steps=4, batch_size=3, sequence_length=12, lr=3e-3)
VARIANTS = {"tied": DEFAULT, "untied": Variant(tied=False, symmetric=False)}


def random_head(base: BasePack) -> NDArray[np.float32]:
    """[V, H]"""
    size = (base.shape.vocab_size, base.shape.hidden_size)
    return np.random.default_rng(3).normal(0, 0.15, size).astype(np.float32)


def bases_head(base: BasePack) -> NDArray[np.float32]:
    return dequantize(base.matrix(EMBEDDING if base.shape.tie_word_embeddings else HEAD))


def reference(base: BasePack, problem: Problem, head: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """(losses [S, T], the gradient in the head [V, H]) of the base without an adapter, in float64"""
    leaf = torch.from_numpy(head.astype(np.float64)).requires_grad_()
    untied = dataclasses.replace(base.shape, tie_word_embeddings=False)
    logits = dense_logits(untied, dense_weights(base) | {HEAD: leaf}, problem.tokens, problem.starts)
    flat = F.cross_entropy(logits.flatten(0, 1), problem.targets.flatten(), ignore_index=IGNORED, reduction="none")
    losses = flat.view(problem.targets.shape)
    (gradient,) = torch.autograd.grad((problem.row_scale * losses).sum(), leaf)
    return losses.detach(), gradient


def with_head(adapter: Adapter, head: NDArray[np.float32]) -> Adapter:
    return with_extras(adapter, {WEIGHT: head})


def without_effect(base: BasePack) -> Adapter:
    adapter = random_adapter(base)
    pairs = {m: dataclasses.replace(pair, lora_B=np.zeros_like(pair.lora_B)) for m, pair in adapter.pairs.items()}
    return Adapter(adapter.config, pairs)


@pytest.mark.parametrize("part", [8192, 100])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_a_head_equals_autograds(
    packs: Packs, compute: Compute, variant: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora_client.decoder.head.VOCABULARY_PART", part)
    check_head(packs(VARIANTS[variant]), compute)


def test_the_gradient_of_a_head_equals_autograds_where_logits_are_capped(compute: Compute) -> None:
    base = family_pack("gemma2")
    assert base.shape.logit_cap
    check_head(base, compute)


def check_head(base: BasePack, compute: Compute) -> None:
    """Losses, and the gradient in a head that trains, equal autograd's."""
    problem, head = random_problem(base, 2, 19), random_head(base)
    decoder = Decoder(base, compute)
    lora = decoder.lora(with_head(without_effect(base), head))
    losses = decoder.add_gradients(*problem, lora, decoder.workspace())
    expected_losses, expected = reference(base, problem, head)
    assert_close(losses, expected_losses)
    assert_close(lora.extras[WEIGHT].gradients[0], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bases_own_head_that_trains_changes_no_other_gradient(packs: Packs, compute: Compute, variant: str) -> None:
    base = packs(VARIANTS[variant])
    decoder, problem, adapter = Decoder(base, compute), random_problem(base, 2, 15), random_adapter(base)
    lora = decoder.lora(with_head(adapter, bases_head(base)))
    losses = decoder.add_gradients(*problem, lora, decoder.workspace())
    expected_losses, expected = reference_gradients(base, problem, adapter)
    assert_close(losses, expected_losses)
    for module, pair in expected.items():
        for mine, theirs in zip(lora.gradients()[module], pair, strict=True):
            assert_close(mine, theirs)


def trained(decoder: Decoder, head: NDArray[np.float32] | None, **changes: object) -> TrainResult:
    windows, adapter = windows_of(decoder.base), random_adapter(decoder.base)
    if head is not None:
        adapter = with_head(adapter, head)
    return train(decoder, adapter, windows, CONFIG, np.random.default_rng(0), **changes)  # type: ignore[arg-type]


def test_a_training_returns_the_head_that_it_trained_and_leaves_the_given_one_alone(decoder: Decoder) -> None:
    given, same = bases_head(decoder.base).copy(), bases_head(decoder.base)
    result = trained(decoder, given)
    assert np.array_equal(given, same)
    assert result.adapter.extras.keys() == {WEIGHT}
    assert result.adapter.extras[WEIGHT].shape == given.shape
    assert not np.array_equal(result.adapter.extras[WEIGHT], given)
    assert not trained(decoder, None).adapter.extras
    assert result.losses[0] == pytest.approx(trained(decoder, None).losses[0], rel=1e-4)


def test_a_training_of_a_head_that_dies_ends_as_if_it_had_not(decoder: Decoder, tmp_path: Path) -> None:
    head = bases_head(decoder.base)
    expected = trained(decoder, head)

    def die(step: int, loss: float) -> None:
        if step == 2:
            raise InterruptedError

    saving = Saving(file=tmp_path / "state", every=1)
    with pytest.raises(InterruptedError):
        trained(decoder, head, watcher=Watcher(on_step=die), saving=saving)
    got = trained(decoder, head, saving=saving)
    assert_equal_bits(got.adapter, expected.adapter)
    assert got.losses == expected.losses
    assert np.array_equal(got.adapter.extras[WEIGHT], expected.adapter.extras[WEIGHT])


def test_a_head_goes_with_one_adapter_only(decoder: Decoder) -> None:
    adapter = with_head(random_adapter(decoder.base), random_head(decoder.base))
    with pytest.raises(AssertionError):
        decoder.lora(adapter, adapter)
