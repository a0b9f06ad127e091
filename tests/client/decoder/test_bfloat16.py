"""Training in bfloat16: no further from the truth than transformers and PEFT are in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.data.windows import IGNORED
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.layers.batch import Dropout, no_dropout
from fedlora_client.layers.dropout import SeededDropout
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.ops.attention import QUERY_BLOCK
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.ops import Ops
from torch import Tensor

from tests.reference.dense import Gradients, Problem, random_problem, reference_gradients, relative_error
from tests.reference.oracles import oracle, peft_oracle
from tests.reference.tolerances import TIMES_OWN_ERROR, TIMES_PEFTS_ERROR
from tests.tiny.adapters import ALL_RANKS, random_adapter
from tests.tiny.families import family_pack
from tests.tiny.llamas import VARIANTS, Packs, Variant

SEEDS = range(3)
NOTHING_KEPT = MemoryPlan()


def pefts_gradients(base: BasePack, problem: Problem, adapter: Adapter) -> tuple[Tensor, Gradients]:
    """(losses, gradients) of transformers and PEFT in bfloat16; the loss in float32, as transformers computes it."""
    model, parameters = peft_oracle(base, adapter, torch.bfloat16)
    logits = model(problem.tokens).logits.float().flatten(0, 1)
    losses = F.cross_entropy(logits, problem.targets.flatten(), ignore_index=IGNORED, reduction="none")
    (problem.row_scale.flatten() * losses).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {module: (lora_A.grad, lora_B.grad) for module, (lora_A, lora_B) in parameters.items()}
    return losses.detach().view(problem.targets.shape), gradients


def own_gradients(
    base: BasePack,
    problem: Problem,
    *adapters: Adapter,
    ops: Ops,
    memory_plan: MemoryPlan = NOTHING_KEPT,
    dropout: Dropout = no_dropout,
) -> tuple[Tensor, list[Gradients]]:
    """(losses, the gradients of each adapter) in bfloat16"""
    decoder = Decoder(base, Compute(torch.device("cpu"), torch.bfloat16, ops))
    lora = decoder.lora(*adapters)
    losses = decoder.add_gradients(*problem, lora, decoder.workspace(), memory_plan, dropout)
    return losses, [lora.gradients(number) for number in range(len(adapters))]


Computed = tuple[Tensor, Gradients]  # (losses, gradients)
_references: dict[tuple[Path, str, int, int], tuple[Computed, Computed]] = {}


def references(base: BasePack, adapter: Adapter, length: int, seed: int) -> tuple[Computed, Computed]:
    """(what is true in float64, what PEFT has in bfloat16) of a random problem; `adapter` is known by its configuration."""
    key = (base.directory, str(adapter.config), length, seed)
    if key not in _references:
        problem = random_problem(base, 2, length, seed=seed, ends=0)
        _references[key] = reference_gradients(base, problem, adapter), pefts_gradients(base, problem, adapter)
    return _references[key]


def check_against_peft(base: BasePack, adapter: Adapter, ops: Ops, length: int) -> None:
    """Over a few batches: gradients and losses are no further from float64 than PEFT's are."""
    errors, pefts_errors, off, pefts_off = 0.0, 0.0, 0.0, 0.0
    for seed in SEEDS:
        problem = random_problem(base, 2, length, seed=seed, ends=0)
        losses, (gradients,) = own_gradients(base, problem, adapter, ops=ops)
        (expected_losses, expected), (pefts_losses, pefts) = references(base, adapter, length, seed)
        errors += relative_error(gradients, expected)
        pefts_errors += relative_error(pefts, expected)
        off += float((losses - expected_losses).norm())
        pefts_off += float((pefts_losses - expected_losses).norm())
    assert errors <= TIMES_PEFTS_ERROR * pefts_errors
    assert off <= TIMES_PEFTS_ERROR * pefts_off


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_gradients_are_as_near_to_the_truth_as_pefts(packs: Packs, ops: Ops, variant: str) -> None:
    base = packs(VARIANTS[variant])
    check_against_peft(base, random_adapter(base), ops, 24)


@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "phi3", "gemma2", "gemma3"])
def test_bfloat16_gradients_are_as_near_as_pefts_in_other_families(family: str, ops: Ops) -> None:
    base = family_pack(family)
    check_against_peft(base, random_adapter(base), ops, 24)


def test_bfloat16_gradients_are_as_near_as_pefts_for_mixed_ranks(base: BasePack, ops: Ops) -> None:
    check_against_peft(base, random_adapter(base, ALL_RANKS), ops, 16)


def test_bfloat16_gradients_are_as_near_as_pefts_over_several_blocks_of_queries(packs: Packs, ops: Ops) -> None:
    base = packs(Variant(context=QUERY_BLOCK + 50, layers=1, inner=96))
    check_against_peft(base, random_adapter(base), ops, QUERY_BLOCK + 50)


def test_the_adapters_of_a_stack_in_bfloat16_are_as_near_as_pefts_one_by_one(base: BasePack, ops: Ops) -> None:
    configs = (ALL_RANKS, LoraConfig(rank=2, alpha=9.0), LoraConfig(rank=9, alpha=4.0))
    adapters = [random_adapter(base, config, seed) for seed, config in enumerate(configs)]
    problem = random_problem(base, 6, 20, ends=0)
    _, stacked = own_gradients(base, problem, *adapters, ops=ops)
    error, pefts_error = 0.0, 0.0
    for number, adapter in enumerate(adapters):
        own = problem.rows(slice(2 * number, 2 * number + 2))
        _, expected = reference_gradients(base, own, adapter)
        error += relative_error(stacked[number], expected)
        pefts_error += relative_error(pefts_gradients(base, own, adapter)[1], expected)
    assert error <= TIMES_PEFTS_ERROR * pefts_error


def test_dropout_in_bfloat16_errs_no_more_than_none(base: BasePack, ops: Ops) -> None:
    adapter, problem = random_adapter(base), random_problem(base, 4, 32)
    masks = SeededDropout(0.25, (3,), Compute(torch.device("cpu"), torch.bfloat16, ops)).of(0, 0)
    errors = []
    for mask in (masks, no_dropout):
        _, (gradients,) = own_gradients(base, problem, adapter, ops=ops, dropout=mask)
        _, expected = reference_gradients(base, problem, adapter, mask)
        errors.append(relative_error(gradients, expected))
    assert errors[0] <= TIMES_OWN_ERROR * errors[1]


def test_kept_blocks_change_no_bit_in_bfloat16(base: BasePack, ops: Ops) -> None:
    adapter, problem = random_adapter(base, ALL_RANKS), random_problem(base, 2, 19)
    results = [own_gradients(base, problem, adapter, ops=ops, memory_plan=MemoryPlan(kept_blocks=n)) for n in (0, 1)]
    for losses, (gradients,) in results[1:]:
        assert torch.equal(losses, results[0][0])
        for module, pair in gradients.items():
            assert all(map(torch.equal, pair, results[0][1][0][module]))


def test_logits_in_bfloat16_are_as_near_as_those_of_transformers(base: BasePack, ops: Ops) -> None:
    problem = random_problem(base, 4, 40, ends=0)
    with torch.no_grad():
        expected, theirs = (
            oracle(base, dtype)(problem.tokens).logits.float() for dtype in (torch.float32, torch.bfloat16)
        )
    mine = Decoder(base, Compute(torch.device("cpu"), torch.bfloat16, ops)).logits(problem.tokens).float()
    assert (mine - expected).norm() <= TIMES_PEFTS_ERROR * (theirs - expected).norm()
