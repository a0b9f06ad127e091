"""Every decoder family against transformers and PEFT on the dequantized weights: logits, losses, gradients, a training."""

# S sequences, T tokens of each, V vocabulary

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.config.run import TrainConfig
from fedlora.family import Rotary
from fedlora.family.decoder import BlockNorms
from fedlora_client.data.windows import IGNORED
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.decoder.dense_decoder import dense_logits
from fedlora_client.layers.dropout import SeededDropout
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.ops import Ops
from fedlora_client.training.trainer import train
from torch import Tensor

from tests.client.train_cases import windows_of
from tests.reference import dense as dense_reference
from tests.reference.agreement import assert_close
from tests.reference.dense import Gradients, Problem, random_problem, reference_gradients
from tests.reference.oracles import oracle, peft_oracle
from tests.tiny.adapters import random_adapter
from tests.tiny.families import FAMILIES, WINDOW, family_pack

PLAIN_ROTARY = {size: Rotary(tuple(10000.0 ** (-i / size) for i in range(0, size, 2))) for size in (8, 16)}
each_family = pytest.mark.parametrize("family", FAMILIES)
# What makes a family another than plain Llama: {family: the fields of its shape without that}
VARIATIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama-linear", {"rotary": PLAIN_ROTARY[8]}),
    ("llama-llama3", {"rotary": PLAIN_ROTARY[16]}),
    ("llama-yarn", {"rotary": PLAIN_ROTARY[16]}),
    ("llama-biases", {"biases": ("q_proj", "k_proj", "v_proj")}),
    ("llama-biases", {"biases": ("o_proj", "gate_proj", "up_proj", "down_proj")}),
    ("mistral-window", {"windows": ()}),
    ("gemma3-wide-window", {"local_rotary": None}),
    ("mistral-window", {"windows": (WINDOW + 1, WINDOW)}),
    ("qwen2", {"biases": ()}),
    ("qwen2-window-from-layer-1", {"windows": (WINDOW, WINDOW)}),
    ("qwen3", {"qk_norm": False}),
    ("phi3-longrope", {"rotary": PLAIN_ROTARY[8]}),
    ("gemma2", {"activation": "silu"}),
    ("gemma2", {"embedding_scale": 1.0}),
    ("gemma2", {"attention_scale": 32**-0.5}),
    ("gemma2", {"attention_cap": 0.0}),
    ("gemma2", {"logit_cap": 0.0}),
    ("gemma2", {"norms": BlockNorms(before_mlp="pre_feedforward_layernorm")}),
    ("gemma3", {"local_rotary": None}),
    ("gemma3", {"windows": (0, WINDOW, WINDOW)}),
]
SEQUENCES, LENGTH = 2, 26


def problem_of(base: BasePack) -> Problem:
    """Several examples to a sequence; of each sequence one is longer than a window, and begins late."""
    problem = random_problem(base, SEQUENCES, LENGTH)
    begins = torch.tensor([[0] * 3 + [3] + [4] * 11 + [15] * 11, [0] * 7 + [7] * 19])
    assert LENGTH - 15 > 2 * WINDOW
    return problem._replace(starts=begins)


def logits_of(model: object, problem: Problem) -> Tensor:  # [S, T, V]
    """A model's logits of each example by itself, laid where the example lies."""
    rows = []
    for tokens, starts in zip(problem.tokens, problem.starts, strict=True):
        examples = torch.split(tokens, torch.unique_consecutive(starts, return_counts=True)[1].tolist())
        rows.append(torch.cat([model(example[None]).logits[0] for example in examples]))  # type: ignore[operator]
    return torch.stack(rows)


def losses_of(logits: Tensor, problem: Problem) -> Tensor:  # [S, T]
    flat = F.cross_entropy(logits.flatten(0, 1), problem.targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(problem.targets.shape)


def computed(ops: Ops) -> Compute:
    return Compute(torch.device("cpu"), torch.float32, ops)


@cache
def transformers_logits(family: str) -> Tensor:  # [S, T, V]
    base = family_pack(family)
    with torch.no_grad():
        return logits_of(oracle(base), problem_of(base))


@cache
def pefts_gradients(family: str) -> tuple[Tensor, Gradients]:
    """(losses, gradients) of transformers and PEFT."""
    base = family_pack(family)
    problem = problem_of(base)
    model, parameters = peft_oracle(base, random_adapter(base))
    losses = losses_of(logits_of(model, problem), problem)
    (problem.row_scale * losses).sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), {module: (A.grad, B.grad) for module, (A, B) in parameters.items()}


@each_family
def test_logits_of_packed_examples_equal_those_of_transformers_one_by_one(family: str, ops: Ops) -> None:
    base = family_pack(family)
    problem = problem_of(base)
    logits = Decoder(base, computed(ops)).logits(problem.tokens, starts=problem.starts)
    assert_close(logits, transformers_logits(family))


@each_family
def test_the_dense_reference_equals_transformers(family: str) -> None:
    base = family_pack(family)
    assert_close(dense_reference.reference_logits(base, problem_of(base), None)[0], transformers_logits(family))


@pytest.mark.parametrize(("family", "without"), VARIATIONS)
def test_every_variation_of_a_family_counts(family: str, without: dict[str, Any]) -> None:
    base = family_pack(family)
    problem, weights = problem_of(base), dense_reference.dense_weights(base)
    plain = replace(base.shape, **without)
    left_out = {tensor for tensor in base.shape.float_tensors() if tensor not in plain.float_tensors()}
    with torch.no_grad():
        whole = dense_logits(base.shape, weights, problem.tokens, problem.starts)
        other = {name: weight for name, weight in weights.items() if name not in left_out}
        assert (
            dense_logits(plain, other, problem.tokens, problem.starts) - whole
        ).abs().max() > 0.02 * whole.abs().max()


@each_family
@pytest.mark.parametrize("kept_blocks", [0, 1])
def test_lora_losses_and_gradients_equal_pefts(family: str, ops: Ops, kept_blocks: int) -> None:
    base = family_pack(family)
    problem, adapter = problem_of(base), random_adapter(base)
    expected, expected_gradients = pefts_gradients(family)
    decoder = Decoder(base, computed(ops))
    lora, space = decoder.lora(adapter), decoder.workspace()
    memory_plan = MemoryPlan(kept_blocks=kept_blocks, chunk_rows=16)
    losses = decoder.add_gradients(*problem, lora, space, memory_plan)
    assert_close(losses, expected)
    assert lora.gradients().keys() == expected_gradients.keys() == base.shape.linear_modules().keys()
    for module, gradients in lora.gradients().items():
        for mine, theirs in zip(gradients, expected_gradients[module], strict=True):
            assert_close(mine, theirs)


@each_family
def test_gradients_equal_autograds_with_dropout_and_in_several_parts_of_vocabulary_and_queries(
    family: str, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora_client.decoder.head.VOCABULARY_PART", 100)
    monkeypatch.setattr("fedlora_client.ops.attention.QUERY_BLOCK", 8)
    base = family_pack(family)
    problem, adapter, decoder = problem_of(base), random_adapter(base), Decoder(base, compute)
    masks = SeededDropout(0.3, (5,), compute).of(0, 0)
    lora = decoder.lora(adapter)
    losses = decoder.add_gradients(*problem, lora, decoder.workspace(), dropout=masks)
    expected_losses, expected = reference_gradients(base, problem, adapter, masks)
    assert_close(losses, expected_losses)
    for module, pair in lora.gradients().items():
        for mine, theirs in zip(pair, expected[module], strict=True):
            assert_close(mine, theirs)


@each_family
def test_each_adapter_of_a_stack_gets_the_gradient_that_it_gets_alone(family: str, compute: Compute) -> None:
    base = family_pack(family)
    decoder, problem = Decoder(base, compute), problem_of(base)
    adapters = [random_adapter(base, seed=seed) for seed in range(SEQUENCES)]
    stacked = decoder.lora(*adapters)
    decoder.add_gradients(*problem, stacked, decoder.workspace())
    for number, adapter in enumerate(adapters):
        alone = decoder.lora(adapter)
        decoder.add_gradients(*problem.rows(slice(number, number + 1)), alone, decoder.workspace())
        for module, pair in alone.gradients().items():
            for mine, theirs in zip(stacked.gradients(number)[module], pair, strict=True):
                assert_close(mine, theirs)


@each_family
def test_a_few_steps_reduce_the_loss(family: str, compute: Compute) -> None:
    base = family_pack(family)
    decoder, windows = Decoder(base, compute), windows_of(base)
    config = TrainConfig(steps=8, batch_size=len(windows), sequence_length=windows.inputs.shape[1], lr=1e-2)
    result = train(decoder, random_adapter(base), windows, config, np.random.default_rng(0))
    assert result.losses[-1] < 0.9 * result.losses[0]
