"""The decoder on packed weights against transformers' Llama on the dequantized ones, and LoRA against PEFT's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.ops import Ops
from fedlora_client.reference import logits as reference_logits

from tests.reference import dense as dense_reference
from tests.reference.agreement import assert_close
from tests.reference.dense import random_problem
from tests.reference.oracles import oracle, peft_oracle, read_by_peft
from tests.tiny.adapters import LORAS, changed, random_adapter
from tests.tiny.llamas import VARIANTS, Packs, Variant
from tests.tiny.tokens import random_tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers_on_the_dequantized_weights(packs: Packs, ops: Ops, variant: str) -> None:
    pack = packs(VARIANTS[variant])
    tokens = torch.from_numpy(random_tokens(pack, 3, 13))
    decoder = Decoder(pack, Compute(torch.device("cpu"), torch.float32, ops))
    with torch.no_grad():
        assert_close(decoder.logits(tokens), oracle(pack)(tokens).logits)


@pytest.mark.parametrize("context", [64, 300])  # within one block of queries, and over two
def test_logits_equal_those_of_transformers_over_the_whole_context(
    packs: Packs, compute: Compute, context: int
) -> None:
    pack = packs(Variant(context=context))
    tokens = torch.from_numpy(random_tokens(pack, 1, context))
    with torch.no_grad():
        assert_close(Decoder(pack, compute).logits(tokens), oracle(pack)(tokens).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dense_reference_equals_transformers(packs: Packs, variant: str) -> None:
    pack = packs(VARIANTS[variant])
    problem = random_problem(pack, 2, 13, ends=0)
    logits, _ = dense_reference.reference_logits(pack, problem, None)
    with torch.no_grad():
        assert_close(logits, oracle(pack)(problem.tokens).logits)


def check_lora_parity(pack: BasePack, compute: Compute, config: LoraConfig) -> None:
    """Logits, and the gradient of the mean cross entropy in every A and B, equal PEFT's."""
    adapter = random_adapter(pack, config)
    tokens = torch.from_numpy(random_tokens(pack, 2, 14))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model, parameters = peft_oracle(pack, adapter)
    expected = model(inputs).logits
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    loss.backward()  # type: ignore[no-untyped-call]

    decoder = Decoder(pack, compute)
    lora, space = decoder.lora(adapter), decoder.workspace()
    share = torch.full(targets.shape, 1 / targets.numel())
    losses = decoder.add_gradients(inputs, targets, torch.zeros_like(inputs), share, lora, space)

    assert_close(decoder.logits(inputs, lora), expected)
    assert_close(losses.mean(), loss)
    assert lora.gradients().keys() == parameters.keys()
    for module, gradients in lora.gradients().items():
        for mine, theirs in zip(gradients, parameters[module], strict=True):
            assert_close(mine, theirs.grad)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_logits_and_gradients_equal_pefts_on_every_kind_of_pack(
    packs: Packs, compute: Compute, variant: str
) -> None:
    check_lora_parity(packs(VARIANTS[variant]), compute, LORAS["one-rank"])


@pytest.mark.parametrize("config", LORAS)
def test_lora_logits_and_gradients_equal_pefts_for_every_configuration(
    base: BasePack, compute: Compute, config: str
) -> None:
    check_lora_parity(base, compute, LORAS[config])


def test_losses_are_those_of_the_logits(decoder: Decoder) -> None:
    problem, lora = random_problem(decoder.base, 3, 17), decoder.lora(random_adapter(decoder.base))
    logits = decoder.logits(problem.tokens, lora, problem.starts)
    expected = F.cross_entropy(logits.flatten(0, 1), problem.targets.flatten(), reduction="none")
    got = decoder.losses(problem.tokens, problem.targets, problem.starts, lora, decoder.workspace())
    assert_close(got, expected.view(3, 17))


def test_a_new_adapter_changes_no_logit(base: BasePack, decoder: Decoder) -> None:
    adapter = random_adapter(base)
    new = changed(adapter, lambda module, lora_A, lora_B: (lora_A, np.zeros_like(lora_B)))
    tokens = torch.from_numpy(random_tokens(base, 2, 9))
    # Longer rows, of which some meet zeros, may be summed in another order.
    assert_close(decoder.logits(tokens, decoder.lora(new)), decoder.logits(tokens))
    assert not torch.allclose(decoder.logits(tokens, decoder.lora(adapter)), decoder.logits(tokens), atol=0.1)


def test_a_token_depends_on_none_that_follows_it(base: BasePack, decoder: Decoder) -> None:
    tokens = random_tokens(base, 1, 12)
    other = tokens.copy()
    other[0, 7:] = (other[0, 7:] + 1) % base.shape.vocab_size
    before, after = (decoder.logits(torch.from_numpy(t)).numpy() for t in (tokens, other))
    assert_close(after[:, :7], before[:, :7])
    assert np.abs(after[:, 7] - before[:, 7]).max() > 0.1


def test_sequences_of_a_batch_do_not_see_each_other(base: BasePack, decoder: Decoder) -> None:
    tokens = torch.from_numpy(random_tokens(base, 3, 10))
    together = decoder.logits(tokens)
    for number in range(3):
        assert_close(together[number], decoder.logits(tokens[number : number + 1])[0])


def test_an_example_does_not_see_the_one_before_it_in_its_window(base: BasePack, decoder: Decoder) -> None:
    tokens = torch.from_numpy(random_tokens(base, 1, 12))
    starts = torch.tensor([[0] * 5 + [5] * 7])
    together = decoder.logits(tokens, starts=starts)
    for begin, end in ((0, 5), (5, 12)):
        assert_close(together[:, begin:end], decoder.logits(tokens[:, begin:end]))


@pytest.mark.parametrize("config", LORAS)
def test_an_adapter_that_fedlora_writes_means_the_same_to_peft(base: BasePack, config: str, tmp_path: Path) -> None:
    adapter = random_adapter(base, LORAS[config])
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    model = read_by_peft(base, tmp_path / "adapter")
    tokens = random_tokens(base, 2, 10)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits
    assert_close(reference_logits(base, tokens, adapter), expected)
    assert np.abs(reference_logits(base, tokens, None) - expected.numpy()).max() > 0.1  # and it does something
