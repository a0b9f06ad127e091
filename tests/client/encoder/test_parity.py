"""The encoder against transformers and PEFT on the dequantized base: scores, embeddings, losses and gradients."""

# S texts, T tokens of the longest

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.errors import DataError
from fedlora.lora.config import LoraConfig
from fedlora_client.data.windows import IGNORED, Windows
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.layers.dropout import SeededDropout
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.ops.compute import Compute, choose_compute
from fedlora_client.reference import logits as reference_logits
from numpy.typing import NDArray
from torch import Tensor

from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle, peft_encoder
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import BARE, ENCODERS, encoder_pack
from tests.tiny.tokens import random_texts

LENGTHS = (9, 17, 2, 1)


@pytest.fixture(scope="session")
def bert(compute: Compute) -> Encoder:
    return Encoder(encoder_pack("bert"), compute)


def starts_of(mask: NDArray[np.int64]) -> Tensor:
    """0 where there is text, a padded position's own place elsewhere."""
    return torch.from_numpy(np.where(mask == 1, 0, np.arange(mask.shape[1])))


def problem_of(base: BasePack, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, targets, starts), each [S, T], of texts of these lengths with random labels."""
    tokens, mask = random_texts(base, lengths)
    targets = torch.full(mask.shape, IGNORED)
    targets[:, 0] = torch.tensor([number % 3 for number in range(len(lengths))])
    return torch.from_numpy(tokens), targets, starts_of(mask)


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_equal_transformers(compute: Compute, name: str) -> None:
    base = encoder_pack(name)
    tokens, mask = (torch.from_numpy(part) for part in random_texts(base, LENGTHS))
    with torch.no_grad():
        expected = oracle(base)(tokens, attention_mask=mask).logits
    assert_close(Encoder(base, compute).logits(tokens, starts=starts_of(mask.numpy())), expected)
    assert float(expected.std(0).min()) > 0.1  # and texts differ


@pytest.mark.parametrize("name", BARE)
def test_embeddings_are_the_mean_of_transformers_last_states_over_the_text(compute: Compute, name: str) -> None:
    base = encoder_pack(name)
    tokens, mask = (torch.from_numpy(part) for part in random_texts(base, LENGTHS))
    with torch.no_grad():
        states = oracle(base)(tokens, attention_mask=mask).last_hidden_state
    expected = torch.stack([state[:length].mean(0) for state, length in zip(states, LENGTHS, strict=True)])
    assert_close(Encoder(base, compute).logits(tokens, starts=starts_of(mask.numpy())), expected)


@pytest.mark.parametrize("label_prior", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("name", ENCODERS)
def test_scores_losses_and_every_gradient_equal_pefts(compute: Compute, name: str, label_prior: float) -> None:
    base = encoder_pack(name)
    encoder, adapter = Encoder(base, compute), random_adapter(base)
    tokens, targets, starts = problem_of(base)
    if label_prior:
        targets[targets[:, 0] == 2, 0] = 0
    model, parameters = peft_encoder(base, adapter)
    out = model(input_ids=tokens, attention_mask=(starts == 0).long())
    weights = torch.tensor([0.1, 0.4, 0.2, 0.3])
    shares = torch.bincount(targets[:, 0], minlength=out.logits.shape[1]) / len(targets)
    assert (0 in shares) == bool(label_prior)  # of an absent label the score takes part in nothing
    added = label_prior * shares.log() if label_prior else torch.zeros(out.logits.shape[1])
    expected = torch.nn.functional.cross_entropy(out.logits + added, targets[:, 0], reduction="none")
    torch.autograd.backward(weights @ expected)

    lora = encoder.lora(adapter)
    shift = encoder.score_shift(Windows(tokens, targets, starts, examples=len(tokens)), label_prior)
    losses = encoder.add_gradients(
        tokens, targets, starts, weights[:, None].expand(targets.shape), lora, encoder.workspace(),
        shift=None if shift is None else shift.expand(len(tokens), -1),
    )  # fmt: skip
    assert_close(encoder.logits(tokens, lora, starts), out.logits)
    assert_close(losses[:, 0], expected)
    assert not losses[:, 1:].any()
    if not label_prior:  # what is measured has none
        assert_close(encoder.losses(tokens, targets, starts, lora, encoder.workspace()), losses)
    assert lora.gradients().keys() == parameters.keys()
    for module, gradients in lora.gradients().items():
        for mine, theirs in zip(gradients, parameters[module], strict=True):
            assert_close(mine, theirs.grad)


def test_padding_changes_neither_scores_nor_losses_nor_gradients(bert: Encoder) -> None:
    adapter = random_adapter(bert.base)
    tokens, targets, starts = problem_of(bert.base)
    more = torch.arange(17, 22).expand(len(tokens), -1)
    wider = (
        torch.cat((tokens, torch.full_like(more, 77)), 1),
        torch.cat((targets, torch.full_like(more, IGNORED)), 1),
        torch.cat((starts, more), 1),
    )
    noise = torch.where(starts == 0, tokens, 99)
    results = []
    for given in ((tokens, targets, starts), (noise, targets, starts), wider):
        lora, scale = bert.lora(adapter), torch.full(given[0].shape, 0.25)
        losses = bert.add_gradients(*given, scale, lora, bert.workspace())
        results.append((losses[:, :17], bert.logits(given[0], lora, given[2]), lora.gradients()))
    for losses, scores, gradients in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(scores, results[0][1])
        for module, (grad_A, grad_B) in results[0][2].items():
            assert torch.equal(gradients[module][0], grad_A)
            assert torch.equal(gradients[module][1], grad_B)


@pytest.mark.parametrize("mask", [[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 2]])
def test_padding_that_is_not_at_the_end_and_a_row_without_text_are_refused(bert: Encoder, mask: list[int]) -> None:
    tokens, masks = np.full((2, 4), 7), np.array([[1, 1, 1, 0], mask])
    with pytest.raises(DataError, match=f"text 2 of 2: .* then 0s, got {' '.join(map(str, mask))}; pad"):
        reference_logits(bert.base, tokens, None, masks)


@pytest.mark.parametrize("starts", [[0, 1, 0, 0], [1, 1, 2, 3]])
def test_text_after_padding_is_refused_wherever_it_is_computed(bert: Encoder, starts: list[int]) -> None:
    tokens, wrong, targets = torch.full((1, 4), 7), torch.tensor([starts]), torch.tensor([[1, -100, -100, -100]])
    lora = bert.lora(random_adapter(bert.base))
    with pytest.raises(DataError, match="text 1 of 1: expected a mask of 1s"):
        bert.logits(tokens, starts=wrong)
    with pytest.raises(DataError, match="text 1 of 1: expected a mask of 1s"):
        bert.add_gradients(tokens, targets, wrong, torch.ones(1, 4), lora, bert.workspace())


def test_texts_of_a_batch_do_not_see_each_other(bert: Encoder) -> None:
    tokens, _, starts = problem_of(bert.base)
    together = bert.logits(tokens, starts=starts)
    for row, length in enumerate(LENGTHS):
        assert_close(bert.logits(tokens[row : row + 1, :length]), together[row : row + 1])


def test_kept_blocks_change_no_bit(bert: Encoder) -> None:
    problem, adapter = problem_of(bert.base), random_adapter(bert.base)
    dropout = SeededDropout(0.3, (5,), bert.compute).of(0, 0)
    results = []
    for kept in (0, 1):
        lora = bert.lora(adapter)
        scale = torch.full(problem[0].shape, 0.25)
        losses = bert.add_gradients(*problem, scale, lora, bert.workspace(), MemoryPlan(kept_blocks=kept), dropout)
        results.append((losses, lora.gradients()))
    assert torch.equal(results[0][0], results[1][0])
    for module, pair in results[0][1].items():
        assert all(torch.equal(a, b) for a, b in zip(pair, results[1][1][module], strict=True))


def test_each_adapter_of_a_stack_gets_the_gradients_that_it_gets_alone(bert: Encoder) -> None:
    problem = problem_of(bert.base)
    adapters = [random_adapter(bert.base), random_adapter(bert.base, seed=3)]
    scale = torch.full(problem[0].shape, 0.25)
    both = bert.lora(*adapters)
    losses = bert.add_gradients(*problem, scale, both, bert.workspace())
    for number, adapter in enumerate(adapters):
        rows, alone = slice(2 * number, 2 * number + 2), bert.lora(adapter)
        tokens, targets, starts = (part[rows] for part in problem)
        own = bert.add_gradients(tokens, targets, starts, scale[rows], alone, bert.workspace())
        assert_close(losses[rows], own)
        for module, pair in alone.gradients().items():
            for mine, theirs in zip(both.gradients(number)[module], pair, strict=True):
                assert_close(mine, theirs)


def test_a_frozen_adapter_acts_and_gets_no_gradient(bert: Encoder) -> None:
    problem, adapter, frozen = problem_of(bert.base), random_adapter(bert.base), random_adapter(bert.base, seed=3)
    lora = bert.lora(adapter, trains="B", frozen=frozen)
    losses = bert.add_gradients(*problem, torch.ones(problem[0].shape), lora, bert.workspace())
    assert not torch.allclose(losses, bert.losses(*problem, bert.lora(adapter), bert.workspace()))
    assert_close(losses, bert.losses(*problem, bert.lora(adapter, frozen=frozen), bert.workspace()))
    assert all(not grad_A.any() and grad_B.any() for grad_A, grad_B in lora.gradients().values())


def test_in_bfloat16_scores_and_gradients_are_near_those_of_float32(bert: Encoder) -> None:
    half = Encoder(encoder_pack("bert"), choose_compute("bfloat16", "on", "cpu"))
    problem, adapter = problem_of(bert.base), random_adapter(bert.base)
    got, expected = half.lora(adapter), bert.lora(adapter)
    for encoder, lora in ((half, got), (bert, expected)):
        encoder.add_gradients(*problem, torch.ones(problem[0].shape), lora, encoder.workspace())
    difference = (half.logits(problem[0], got, problem[2]) - bert.logits(problem[0], expected, problem[2])).abs()
    assert float(difference.max()) < 0.05
    for module, pair in expected.gradients().items():
        for mine, theirs in zip(got.gradients()[module], pair, strict=True):
            assert float((mine - theirs).norm() / theirs.norm()) < 0.05


def test_an_adapter_on_some_modules_leaves_the_others_as_they_are(bert: Encoder) -> None:
    config = LoraConfig(rank=3, alpha=6.0, target_modules=("query", "value"))
    lora, problem = bert.lora(random_adapter(bert.base, config)), problem_of(bert.base)
    bert.add_gradients(*problem, torch.ones(problem[0].shape), lora, bert.workspace())
    assert len(lora.gradients()) == 4
    assert all(gradient.any() for pair in lora.gradients().values() for gradient in pair)
