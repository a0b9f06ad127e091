"""The hand-written backward against autograd over dense weights, for every A and B."""

# S sequences, T tokens of each, C adapters

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
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
from fedlora_client.ops.workspace import Workspace
from torch import Tensor

from tests.reference.agreement import assert_close
from tests.reference.dense import Gradients, Problem, random_problem, reference_gradients
from tests.tiny.adapters import ALL_RANKS, LORAS, random_adapter
from tests.tiny.llamas import VARIANTS, Packs, Variant

# Smaller than every other adapter somewhere, larger somewhere else.
STACK = (ALL_RANKS, LoraConfig(rank=2, alpha=9.0, use_rslora=True), LoraConfig(rank=9, alpha=4.0))
NOTHING_KEPT = MemoryPlan()
LONG = Variant(context=2 * QUERY_BLOCK + 90, layers=1, inner=96, vocab=300)


def computed(ops: Ops) -> Compute:
    return Compute(torch.device("cpu"), torch.float32, ops)


def run(
    decoder: Decoder,
    problem: Problem,
    *adapters: Adapter,
    memory_plan: MemoryPlan = NOTHING_KEPT,
    dropout: Dropout = no_dropout,
    space: Workspace | None = None,
) -> tuple[Tensor, list[Gradients]]:
    """(losses, the gradients of each adapter)"""
    lora = decoder.lora(*adapters)
    losses = decoder.add_gradients(*problem, lora, space or decoder.workspace(), memory_plan, dropout)
    return losses, [lora.gradients(number) for number in range(len(adapters))]


def assert_gradients_close(got: Gradients, expected: Gradients) -> None:
    assert got.keys() == expected.keys()
    for module, pair in expected.items():
        for mine, theirs in zip(got[module], pair, strict=True):
            assert_close(mine, theirs)


def assert_same_bits(got: tuple[Tensor, list[Gradients]], expected: tuple[Tensor, list[Gradients]]) -> None:
    assert torch.equal(got[0], expected[0])
    for mine, theirs in zip(got[1], expected[1], strict=True):
        assert all(torch.equal(a, b) for module in theirs for a, b in zip(mine[module], theirs[module], strict=True))


def check_against_the_reference(decoder: Decoder, problem: Problem, adapter: Adapter, **how: object) -> None:
    losses, (gradients,) = run(decoder, problem, adapter, **how)  # type: ignore[arg-type]
    expected_losses, expected = reference_gradients(decoder.base, problem, adapter, how.get("dropout"))  # type: ignore[arg-type]
    assert_close(losses, expected_losses)
    assert bool((losses[problem.targets == IGNORED] == 0).all())
    assert_gradients_close(gradients, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_autograds_on_every_kind_of_pack(packs: Packs, ops: Ops, variant: str) -> None:
    base = packs(VARIANTS[variant])
    check_against_the_reference(Decoder(base, computed(ops)), random_problem(base, 3, 21), random_adapter(base))


@pytest.mark.parametrize("config", LORAS)
def test_gradients_equal_autograds_for_every_configuration(decoder: Decoder, config: str) -> None:
    adapter = random_adapter(decoder.base, LORAS[config])
    check_against_the_reference(decoder, random_problem(decoder.base, 2, 13), adapter)


def test_gradients_equal_autograds_over_several_blocks_of_queries(packs: Packs, ops: Ops) -> None:
    base = packs(LONG)
    problem = random_problem(base, 2, LONG.context, ends=0.01)
    assert len({int(start) // QUERY_BLOCK for start in problem.starts.flatten()}) == 3
    problem.starts[1] = 0  # one example that every block of queries sees from its beginning
    check_against_the_reference(Decoder(base, computed(ops)), problem, random_adapter(base, LORAS["attention-only"]))


def test_gradients_equal_autograds_over_several_parts_of_the_vocabulary(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, problem = random_adapter(decoder.base), random_problem(decoder.base, 2, 15)
    for size in (100, 129, 257):  # 258 tokens: the last part is shorter, as long as the others, one token
        monkeypatch.setattr("fedlora_client.decoder.head.VOCABULARY_PART", size)
        check_against_the_reference(decoder, problem, adapter)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (4, 1), (1, 64)])
def test_gradients_equal_autograds_for_batches_of_any_shape(decoder: Decoder, shape: tuple[int, int]) -> None:
    problem = random_problem(decoder.base, *shape)
    problem.targets[0, -1] = 7  # at least one
    if shape[1] == 1:
        # A single key is attended to whatever q and k are: their gradients are 0, and rounding has no measure.
        losses, (gradients,) = run(decoder, problem, random_adapter(decoder.base))
        expected_losses, expected = reference_gradients(decoder.base, problem, random_adapter(decoder.base))
        assert_close(losses, expected_losses)
        for module, pair in expected.items():
            for mine, theirs in zip(gradients[module], pair, strict=True):
                assert torch.allclose(mine.double(), theirs, rtol=1e-4, atol=1e-5)
    else:
        check_against_the_reference(decoder, problem, random_adapter(decoder.base))


def test_kept_blocks_change_no_bit(packs: Packs, ops: Ops) -> None:
    base = packs(Variant(layers=3))
    decoder, problem = Decoder(base, computed(ops)), random_problem(base, 2, 17)
    dropout = SeededDropout(0.3, (5,), decoder.compute).of(0, 0)
    for adapters in ((random_adapter(base, ALL_RANKS),), [random_adapter(base, c, 3) for c in STACK[:2]]):
        for masks in (no_dropout, dropout):
            results = [
                run(decoder, problem, *adapters, memory_plan=MemoryPlan(kept_blocks=kept), dropout=masks)
                for kept in (0, 1, 2)
            ]
            for other in results[1:]:
                assert_same_bits(other, results[0])


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_the_rows_of_logits_at_a_time_change_nothing_but_rounding(decoder: Decoder, chunk_rows: int) -> None:
    problem = random_problem(decoder.base, 2, 17)
    memory_plan = MemoryPlan(chunk_rows=chunk_rows)
    check_against_the_reference(decoder, problem, random_adapter(decoder.base), memory_plan=memory_plan)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_each_adapter_of_a_stack_gets_the_gradient_that_it_gets_alone(packs: Packs, ops: Ops, rate: float) -> None:
    base = packs(Variant(tied=False, symmetric=False))
    decoder, problem = Decoder(base, computed(ops)), random_problem(base, 6, 11)
    masks = SeededDropout(rate, (2,), decoder.compute).of(0, 0)
    adapters = [random_adapter(base, config, seed) for seed, config in enumerate(STACK)]
    losses, stacked = run(decoder, problem, *adapters, dropout=masks)
    for number, adapter in enumerate(adapters):
        rows = slice(2 * number, 2 * number + 2)

        def of_rows(module: str, rows: int, columns: int, number: int = number) -> Tensor | None:
            mask = masks(module, 3 * rows, columns)
            return None if mask is None else mask[number * rows : (number + 1) * rows]

        alone_losses, (alone,) = run(decoder, problem.rows(rows), adapter, dropout=of_rows)
        expected_losses, expected = reference_gradients(base, problem.rows(rows), adapter, of_rows)
        for got in (losses[rows], alone_losses):
            assert_close(got, expected_losses)
        assert_gradients_close(alone, expected)
        assert_gradients_close(stacked[number], expected)


def test_what_pads_a_smaller_adapter_of_a_stack_gets_no_gradient(decoder: Decoder) -> None:
    adapters = [random_adapter(decoder.base, config, seed) for seed, config in enumerate(STACK)]
    lora = decoder.lora(*adapters)
    decoder.add_gradients(*random_problem(decoder.base, 3, 9), lora, decoder.workspace())
    padded = 0
    for module, factors in lora.modules.items():
        for number, adapter in enumerate(adapters):
            rank = adapter.pairs[module].rank
            padded += factors.rank - rank
            assert factors.grad_A is not None and factors.grad_B is not None
            assert not factors.grad_A[number, rank:].any() and not factors.grad_B[number, :, rank:].any()
    assert padded > 0


def test_examples_of_a_window_get_the_gradients_that_each_gets_alone(decoder: Decoder) -> None:
    base, adapter = decoder.base, random_adapter(decoder.base, ALL_RANKS)
    problem = random_problem(base, 1, 40)
    begins = sorted(set(problem.starts[0].tolist()))
    assert len(begins) > 4
    losses, (together,) = run(decoder, problem, adapter)
    total: Gradients = {}
    for begin, end in zip(begins, [*begins[1:], 40], strict=True):
        alone = Problem(*(part[:, begin:end] for part in problem))._replace(
            starts=torch.zeros(1, end - begin, dtype=torch.int64)
        )
        own_losses, (own,) = run(decoder, alone, adapter)
        assert torch.allclose(losses[:, begin:end], own_losses, rtol=1e-4, atol=1e-5)
        total = {m: (own[m][0] + total[m][0], own[m][1] + total[m][1]) if total else own[m] for m in own}
    assert_gradients_close(together, total)


@pytest.mark.parametrize("kept_blocks", [0, 1])
def test_dropout_gives_the_gradients_of_the_same_masks(packs: Packs, ops: Ops, kept_blocks: int) -> None:
    base = packs(Variant(symmetric=False))
    decoder = Decoder(base, computed(ops))
    masks = SeededDropout(0.5, (11,), decoder.compute).of(3, 1)
    for config in (ALL_RANKS, LORAS["attention-only"]):
        check_against_the_reference(
            decoder, random_problem(base, 2, 12), random_adapter(base, config), dropout=masks,
            memory_plan=MemoryPlan(kept_blocks=kept_blocks),
        )  # fmt: skip


def test_gradients_are_added_to_those_that_are_there_and_no_value_changes(decoder: Decoder) -> None:
    adapter, problem = random_adapter(decoder.base, ALL_RANKS), random_problem(decoder.base, 2, 9)
    lora, space = decoder.lora(adapter), decoder.workspace()
    decoder.add_gradients(*problem, lora, space)
    once = {module: tuple(part.clone() for part in pair) for module, pair in lora.gradients().items()}
    decoder.add_gradients(*problem, lora, space)
    for module, pair in lora.gradients().items():
        for twice, one in zip(pair, once[module], strict=True):
            assert_close(twice, 2 * one)
    after = lora.adapter()
    for module, values in adapter.pairs.items():
        assert np.array_equal(after.pairs[module].lora_A, values.lora_A)
        assert np.array_equal(after.pairs[module].lora_B, values.lora_B)


def test_nothing_of_an_earlier_batch_is_left_in_the_workspace(decoder: Decoder) -> None:
    adapter, space = random_adapter(decoder.base, ALL_RANKS), decoder.workspace()
    other = random_adapter(decoder.base, LORAS["one-rank"], 8)
    for shape in ((3, 20), (1, 5), (2, 33)):
        problem = random_problem(decoder.base, *shape)
        run(decoder, problem, other, space=space)
        assert_same_bits(run(decoder, problem, adapter, space=space), run(decoder, problem, adapter))


def test_a_batch_without_targets_has_no_loss_and_no_gradient(decoder: Decoder) -> None:
    problem = random_problem(decoder.base, 2, 9)
    losses, (gradients,) = run(
        decoder, problem._replace(targets=torch.full((2, 9), IGNORED)), random_adapter(decoder.base)
    )
    assert not losses.any()
    assert not any(part.any() for pair in gradients.values() for part in pair)


def test_padded_positions_change_neither_loss_nor_gradient(decoder: Decoder) -> None:
    adapter, problem = random_adapter(decoder.base), random_problem(decoder.base, 2, 10, ends=0)
    padding = torch.arange(10, 16).expand(2, 6)  # each attends to itself alone
    padded = Problem(
        torch.cat((problem.tokens, torch.zeros_like(padding)), 1),
        torch.cat((problem.targets, torch.full_like(padding, IGNORED)), 1),
        torch.cat((problem.starts, padding), 1),
        torch.cat((problem.row_scale, torch.ones(2, 6)), 1),
    )
    losses, (expected,) = run(decoder, problem, adapter)
    got_losses, (got,) = run(decoder, padded, adapter)
    assert_close(got_losses[:, :10], losses)
    assert not got_losses[:, 10:].any()
    assert_gradients_close(got, expected)


@pytest.mark.parametrize("where", ["lora_A", "lora_B"])
def test_a_nan_in_a_factor_makes_the_losses_nan(base: BasePack, ops: Ops, where: str) -> None:
    adapter = random_adapter(base)
    module = "model.layers.1.mlp.down_proj"
    pair = adapter.pairs[module]
    poisoned = dataclasses.replace(pair, **{where: np.full_like(getattr(pair, where), np.nan)})
    sick = Adapter(adapter.config, {**adapter.pairs, module: poisoned})
    problem = random_problem(base, 1, 5)
    losses, _ = run(Decoder(base, computed(ops)), problem, sick)
    assert bool(losses[problem.targets != IGNORED].isnan().all())
