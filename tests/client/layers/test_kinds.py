"""Every kind of adapter beside PEFT: the same scores, and the same gradients of what it trains."""

# S sequences, T tokens of each

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import kind_of
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.peft.for_base import adapter_of
from fedlora_client.data.windows import IGNORED
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.ops.compute import Compute
from fedlora_client.training.adamw import AdamW
from torch import Tensor

from tests.reference.dense import Problem, random_problem
from tests.reference.oracles import oracle, pefts_own_warnings
from tests.tiny.encoders import encoder_pack
from tests.tiny.families import family_pack
from tests.tiny.kinds import KINDS, OF_ENCODERS, adapter_of_kind

FAMILIES = ("llama-biases", "phi3", "gemma2")  # biases; joined modules; norms after each half


def pefts(base: BasePack, adapter: Adapter, folder: Path) -> Any:
    """The model with the adapter as PEFT reads it from what fedlora writes."""
    write_peft(folder, PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name="base")
    virtual = kind_of(adapter).is_virtual  # which PEFT trains on from no file
    with pefts_own_warnings():
        model = peft.PeftModel.from_pretrained(oracle(base), str(folder), is_trainable=not virtual).eval()
    if virtual:
        model.prompt_encoder["default"].embedding.weight.requires_grad_(True)
    return model


def gradients_of(model: Any) -> dict[str, Tensor]:
    """{tensor: gradient}, by our names"""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            own = name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight")
            own = own.replace("prompt_encoder.embedding", "prompt_embeddings")
            found[own] = parameter.grad
    return found


def own_gradients(lora: Any) -> dict[str, Tensor]:
    found = {name: own.gradients[0] for name, own in lora.own.items()}
    for module, (lora_A, lora_B) in lora.gradients().items():
        found |= {f"{module}.lora_A": lora_A, f"{module}.lora_B": lora_B}
    return found


def add_gradients(decoder: Decoder, problem: Problem, lora: LoraTensors, plan: MemoryPlan | None = None) -> Tensor:
    """The losses; the gradients of this problem alone are left in `lora`."""
    for flat in lora.flats.values():
        flat.gradient.zero_()
    return decoder.add_gradients(*problem, lora, decoder.workspace(), plan or MemoryPlan())


def check_gradients(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert float((mine[name] - gradient).norm() / gradient.norm()) < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_of_a_decoder_are_pefts(kind: str, family: str, compute: Compute, tmp_path: Path) -> None:
    base = family_pack(family)
    adapter, problem = adapter_of_kind(kind, base), random_problem(base, 3, 12, ends=0)
    model = pefts(base, adapter, tmp_path / "adapter")
    logits = model(problem.tokens).logits.float()[:, -problem.tokens.shape[1] :]  # without a prompt's own
    flat = F.cross_entropy(logits.flatten(0, 1), problem.targets.flatten(), ignore_index=IGNORED, reduction="none")
    (problem.row_scale.flatten() * flat).sum().backward()  # type: ignore[no-untyped-call]
    decoder = Decoder(base, compute)
    lora = decoder.lora(adapter)
    assert torch.allclose(decoder.logits(problem.tokens, lora), logits, atol=2e-5, rtol=1e-4)
    for plan in (MemoryPlan(), MemoryPlan(kept_blocks=1)):
        losses = add_gradients(decoder, problem, lora, plan)
        assert torch.allclose(losses.flatten(), flat, atol=2e-5)
        check_gradients(own_gradients(lora), gradients_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_after_some_steps_nothing_of_an_earlier_adapter_is_left(kind: str, base: BasePack, compute: Compute) -> None:
    decoder, problem = Decoder(base, compute), random_problem(base, 2, 9, ends=0)
    lora = decoder.lora(adapter_of_kind(kind, base))
    optimizers = [AdamW(flat.value, flat.gradient, 0.01) for flat in lora.flats.values()]
    for number in (1, 2, 3):
        add_gradients(decoder, problem, lora)
        for optimizer in optimizers:
            optimizer.step(0.05, number)
    fresh = decoder.lora(lora.adapter(0))
    assert torch.allclose(decoder.logits(problem.tokens, lora), decoder.logits(problem.tokens, fresh), atol=1e-6)
    for each in (lora, fresh):
        add_gradients(decoder, problem, each)
    for mine, theirs in zip(lora.flats.values(), fresh.flats.values(), strict=True):
        assert torch.allclose(mine.gradient, theirs.gradient, atol=1e-6)


def test_vera_as_plain_lora_computes_the_same(base: BasePack, compute: Compute, tmp_path: Path) -> None:
    adapter, problem = adapter_of_kind("vera", base), random_problem(base, 2, 9, ends=0)
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name="base")
    plain, _ = adapter_of(tmp_path / "a", base)
    decoder = Decoder(base, compute)
    assert plain.config.method == "lora" and not plain.extras
    mine, theirs = (decoder.logits(problem.tokens, decoder.lora(one)) for one in (plain, adapter))
    assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", OF_ENCODERS)
def test_scores_and_gradients_of_an_encoder_are_pefts(kind: str, compute: Compute, tmp_path: Path) -> None:
    base = encoder_pack("roberta")
    adapter = adapter_of_kind(kind, base)
    model, generator = pefts(base, adapter, tmp_path / "adapter"), torch.Generator().manual_seed(5)
    tokens = torch.randint(2, base.model.vocab_size, (3, 9), generator=generator)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, 0] = torch.tensor([0, 1, 0])
    scores = model(tokens, attention_mask=torch.ones_like(tokens)).logits
    F.cross_entropy(scores, targets[:, 0], reduction="sum").backward()  # type: ignore[no-untyped-call]
    encoder = Encoder(base, compute)
    lora, starts = encoder.lora(adapter), torch.zeros_like(tokens)
    assert torch.allclose(encoder.logits(tokens, lora, starts), scores, atol=1e-5)
    encoder.add_gradients(tokens, targets, starts, torch.ones(tokens.shape), lora, encoder.workspace())
    check_gradients(own_gradients(lora), gradients_of(model))
