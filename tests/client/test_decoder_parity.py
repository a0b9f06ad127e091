"""The decoder on packed weights against transformers' Llama on the dequantized ones, and LoRA against PEFT's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedlora.adapter import Adapter
from fedlora.lora import LoraConfig
from fedlora.pack import BasePack
from fedlora.peft import PeftDirectory, write_peft
from fedlora_client.decoder import Decoder
from fedlora_client.lora import Factors, LoraTensors, lora_delta
from fedlora_client.reference import logits as reference_logits
from fedlora_client.windows import IGNORED

from tests.models import (
    DEFAULT,
    LORAS,
    VARIANTS,
    Packs,
    assert_close,
    oracle,
    peft_oracle,
    random_adapter,
    random_tokens,
    read_by_peft,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers_on_the_dequantized_weights(packs: Packs, variant: str) -> None:
    pack = packs(VARIANTS[variant])
    tokens = torch.from_numpy(random_tokens(pack, 3, 13))
    with torch.no_grad():
        assert_close(Decoder(pack).logits(tokens), oracle(pack)(tokens).logits)


def test_logits_equal_those_of_transformers_over_the_whole_context(base: BasePack, decoder: Decoder) -> None:
    tokens = torch.from_numpy(random_tokens(base, 1, base.shape.max_positions))
    with torch.no_grad():
        assert_close(decoder.logits(tokens), oracle(base)(tokens).logits)


def check_lora_parity(pack: BasePack, config: LoraConfig) -> None:
    """Logits, and the gradient of the mean cross entropy in every A and B, equal PEFT's."""
    adapter = random_adapter(pack, config)
    tokens = torch.from_numpy(random_tokens(pack, 2, 14))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model, parameters = peft_oracle(pack, adapter)
    expected = model(inputs).logits
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()  # type: ignore[no-untyped-call]

    lora = LoraTensors.of(adapter, trainable=True)
    got = Decoder(pack).logits(inputs, lora)
    F.cross_entropy(got.flatten(0, 1), targets.flatten()).backward()  # type: ignore[no-untyped-call]

    assert_close(got, expected)
    assert lora.modules.keys() == parameters.keys()
    for module, factors in lora.modules.items():
        for mine, theirs in zip(factors[:2], parameters[module], strict=True):
            assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_logits_and_gradients_equal_pefts_on_every_kind_of_pack(packs: Packs, variant: str) -> None:
    check_lora_parity(packs(VARIANTS[variant]), LORAS["one-rank"])


@pytest.mark.parametrize("config", LORAS)
def test_lora_logits_and_gradients_equal_pefts_for_every_configuration(base: BasePack, config: str) -> None:
    check_lora_parity(base, LORAS[config])


def test_a_new_adapter_changes_no_logit(base: BasePack, decoder: Decoder) -> None:
    adapter = random_adapter(base)
    zero = {name: (pair.lora_A, np.zeros_like(pair.lora_B)) for name, pair in adapter.pairs.items()}
    lora = LoraTensors(
        adapter.config, {name: Factors(torch.tensor(a), torch.tensor(b), 2.0) for name, (a, b) in zero.items()}
    )
    tokens = torch.from_numpy(random_tokens(base, 2, 9))
    assert torch.equal(decoder.logits(tokens, lora), decoder.logits(tokens))
    assert not torch.equal(decoder.logits(tokens, LoraTensors.of(adapter)), decoder.logits(tokens))


def test_lora_delta_is_the_scaled_dense_product() -> None:
    generator = torch.Generator().manual_seed(0)
    x, lora_A, lora_B = (torch.randn(*shape, generator=generator) for shape in ((5, 9), (3, 9), (7, 3)))
    dense = 0.25 * lora_B.double() @ lora_A.double()  # [O, I]
    assert_close(lora_delta(x, Factors(lora_A, lora_B, 0.25)), x.double() @ dense.T)


def test_only_the_factors_of_the_adapter_get_gradients(packs: Packs) -> None:
    pack = packs(DEFAULT)
    decoder = Decoder(pack)
    lora = LoraTensors.of(random_adapter(pack), trainable=True)
    logits = decoder.logits(torch.from_numpy(random_tokens(pack, 2, 8)), lora)
    # Every leaf that the loss depends on and that accumulates a gradient.
    leaves, seen, open_nodes = [], set(), [logits.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        open_nodes += [following for following, _ in node.next_functions]
    assert {id(leaf) for leaf in leaves} == {id(parameter) for parameter in lora.parameters()}
    logits.square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lora.parameters())


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


def test_padded_positions_change_neither_loss_nor_gradient(base: BasePack, decoder: Decoder) -> None:
    adapter = random_adapter(base)
    tokens = torch.from_numpy(random_tokens(base, 2, 11))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    results = []
    for padding in (0, 6):
        lora = LoraTensors.of(adapter, trainable=True)
        logits = decoder.logits(F.pad(inputs, (0, padding)), lora)
        padded_targets = F.pad(targets, (0, padding), value=IGNORED).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), padded_targets, ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        results.append((loss, [parameter.grad for parameter in lora.parameters()]))
    assert_close(results[1][0], results[0][0])
    for padded, plain in zip(results[1][1], results[0][1], strict=True):
        assert_close(padded, plain)


def test_lora_tensors_copy_the_adapter_both_ways(base: BasePack) -> None:
    adapter = random_adapter(base, LORAS["rslora-with-patterns"])
    before = {name: (pair.lora_A.copy(), pair.lora_B.copy()) for name, pair in adapter.pairs.items()}
    lora = LoraTensors.of(adapter, trainable=True)
    back = lora.adapter()
    assert back.config == adapter.config
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.fill_(7)
    for copy in (adapter, back):
        for name, (lora_A, lora_B) in before.items():
            assert np.array_equal(copy.pairs[name].lora_A, lora_A)
            assert np.array_equal(copy.pairs[name].lora_B, lora_B)


@pytest.mark.parametrize("config", LORAS)
def test_an_adapter_that_fedlora_writes_means_the_same_to_peft(base: BasePack, config: str, tmp_path: Path) -> None:
    adapter: Adapter = random_adapter(base, LORAS[config])
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    model = read_by_peft(base, tmp_path / "adapter")
    tokens = random_tokens(base, 2, 10)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits
    assert_close(reference_logits(base, tokens, adapter), expected)
    assert np.abs(reference_logits(base, tokens, None) - expected.numpy()).max() > 0.1  # and it does something
