"""Merging from end to end where it costs most: at 4 bits, and for encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization, dequantize
from fedlora.exported.profiles import graph_name
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.reference import logits as torch_logits
from fedlora_export.checks.verify import verify_folder
from fedlora_export.export import export_base
from fedlora_export.merge import MergeDifference, MergeLoss, export_merged, merge_loss

from tests.export.graph_runs import graph_logits, open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle
from tests.tiny.adapters import leaves_of, random_adapter
from tests.tiny.encoders import ENCODERS, save_encoder
from tests.tiny.llamas import DEFAULT, VARIANTS, Packs
from tests.tiny.tokens import random_texts, random_tokens

FOUR_BITS = {
    "symmetric": DEFAULT,
    "asymmetric": VARIANTS["4-bit-asymmetric-untied-mha-head16"],
    "asymmetric, blocks of 64": VARIANTS["4-bit-asymmetric-block64-4-bit-embedding"],
}
# The root mean square of what rounding a normal weight to 4 bits costs, beside the weight's own: the largest of a block
# of 32 to 64 is 2.1 to 2.4 deviations, a step an eighth of that, and its rounding error 1 / sqrt(12) of the step.
FOUR_BIT_ERROR = 2.4 / 8 / 12**0.5
QUANTIZATIONS = {
    "8 bits": (8, True, 0.05), "4 bits": (4, True, 0.5), "4 bits, asymmetric": (4, False, 0.5),
}  # fmt: skip


def assert_the_sum_is_rounded_once_more(base: BasePack, merged: BasePack, adapter: Adapter, error: float) -> None:
    """Each matrix is W + scaling B A but for its rounding, and what the adapter leaves alone has its bytes."""
    for module in base.model.linear_modules():
        pair = adapter.pairs[module]
        exact = dequantize(base.matrix(module)) + adapter.config.scaling_of(module) * pair.lora_B @ pair.lora_A
        off = dequantize(merged.matrix(module)) - exact
        assert 0 < np.sqrt((off**2).mean() / (exact**2).mean()) < error, module
    written = {f"{module}.{kind}" for module in adapter.pairs for kind in ("qweight", "scales", "zeros")}
    for tensor in base.weights.entries.keys() - written:
        np.testing.assert_array_equal(merged.weights.array(tensor), base.weights.array(tensor))


@pytest.mark.parametrize("kind", FOUR_BITS)
def test_a_decoder_of_four_bits_speaks_as_its_rounded_sum_and_nearer_to_the_adapter_than_the_base(
    packs: Packs, tmp_path: Path, kind: str
) -> None:
    base = packs(FOUR_BITS[kind])
    adapter, tokens = random_adapter(base), random_tokens(base, 2, 12)
    graph, loss = export_merged(base, adapter, tmp_path / "merged", accuracy_level=FLOAT_ACCURACY)
    merged = open_pack(tmp_path / "merged")
    assert merged.quantization == base.quantization
    assert_the_sum_is_rounded_once_more(base, merged, adapter, FOUR_BIT_ERROR)
    with torch.no_grad():
        expected = oracle(merged)(torch.from_numpy(tokens)).logits
    assert_close(graph_logits(open_session(graph.path), merged, tokens), expected)
    assert_close(graph_logits(open_session(graph.path), merged, tokens, steps=(9, 1, 1, 1)), expected)
    apart, bare = export_base(base, tmp_path / "model", profiles=("compat", "base"), accuracy_level=FLOAT_ACCURACY)
    lost = merge_loss(apart.path, base, adapter, bare.path)
    assert isinstance(loss, MergeLoss)
    assert 0 < loss.divergence < 0.5 * lost.divergence
    assert loss.agreement > lost.agreement
    assert list(verify_folder(tmp_path / "merged"))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_scores_as_its_rounded_sum_and_nearer_to_the_adapter_than_the_base(
    tmp_path: Path, name: str, quantization: str
) -> None:
    bits, symmetric, share = QUANTIZATIONS[quantization]
    save_encoder(name, tmp_path / "checkpoint")
    how = Quantization(bits=bits, embedding_bits=8, block_size=32, symmetric=symmetric)
    make_pack(str(tmp_path / "checkpoint"), tmp_path / "pack", how)
    base = open_pack(tmp_path / "pack")
    adapter = random_adapter(base, LoraConfig(rank=4, alpha=24.0, target_modules=leaves_of(base)))
    graph, cost = export_merged(base, adapter, tmp_path / "merged", accuracy_level=FLOAT_ACCURACY)
    assert isinstance(cost, MergeDifference)  # an encoder writes no text
    assert 0 < cost.merged < cost.adapter
    merged = open_pack(tmp_path / "merged")
    assert graph.path == tmp_path / "merged" / graph_name(base.model, "base")
    assert_the_sum_is_rounded_once_more(base, merged, adapter, FOUR_BIT_ERROR / (1 if bits == 4 else 16))
    tokens, mask = random_texts(base, (9, 17, 2, 5))
    (scores,) = open_session(graph.path).run(None, {"input_ids": tokens, "attention_mask": mask})
    with torch.no_grad():
        assert_close(scores, oracle(merged)(torch.from_numpy(tokens), torch.from_numpy(mask)).logits)
    with_adapter, without = (torch_logits(base, tokens, given, mask) for given in (adapter, None))
    assert np.linalg.norm(scores - with_adapter) < share * np.linalg.norm(without - with_adapter)
    assert list(verify_folder(tmp_path / "merged"))
