"""Checkpoints that are quantized already are refused by the method's name, before anything else is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fedlora.base.packing import largest_block_size, make_pack
from fedlora.errors import CheckpointError

from tests.tiny.checkpoints import LLAMA, llama_config, tiny_quantization, tree

Tensors = dict[str, torch.Tensor]
NAME = "model.layers.0.self_attn.q_proj"


def _edit(checkpoint: Path, **changes: Any) -> None:
    (checkpoint / "config.json").write_text(json.dumps(llama_config(**changes)))


def _replace(checkpoint: Path, tensors: Tensors) -> None:
    """The weights with `tensors` in the place of q_proj's."""
    file = checkpoint / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights[f"{NAME}.weight"]
    safetensors.torch.save_file(weights | {f"{NAME}.{name}": value for name, value in tensors.items()}, file)


def _refused(checkpoint: Path, tmp_path: Path) -> str:
    before = tree(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        make_pack(checkpoint, tmp_path / "pack", tiny_quantization())
    assert tree(tmp_path) == before
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: quantized already, with ")
    assert "pack the unquantized checkpoint that it was made from" in message
    return message


CONFIGURED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes 4": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes, 4"),
    "bitsandbytes 8": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, 8"),
    "bitsandbytes of old": ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes, 8 bits"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "GPTQ, 4 bits"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ, 4 bits"),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "FP8"),
    "compressed": ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "compressed of old": ({"compression_config": {"format": "pack-quantized"}}, "compressed-tensors"),
    "hqq": ({"quantization_config": {"quant_method": "hqq"}}, "HQQ"),
    "mxfp4": ({"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4"),
    "torchao": ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
    "one that nobody knows": ({"quantization_config": {"quant_method": "zip3"}}, "zip3"),
    "one without a name": ({"quantization_config": {"weights": "small"}}, "does not name"),
    "one that is no object": ({"quantization_config": "int4"}, "does not name"),
    "of an architecture that is not known": (
        {"architectures": ["GptOssForCausalLM"], "quantization_config": {"quant_method": "mxfp4"}}, "MXFP4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGURED)
def test_the_method_that_config_json_names_is_told(tmp_path: Path, checkpoint: Path, what: str) -> None:
    changes, method = CONFIGURED[what]
    _edit(checkpoint, **changes)
    (checkpoint / "model.safetensors").unlink()  # it is read first
    assert f"with {method}" in _refused(checkpoint, tmp_path) or "does not name" in method
    with pytest.raises(CheckpointError, match="quantized already"):
        largest_block_size(str(checkpoint))


@pytest.mark.parametrize("nothing", [None, {}, False])
def test_a_configuration_that_quantizes_nothing_is_packed(tmp_path: Path, checkpoint: Path, nothing: object) -> None:
    (checkpoint / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": nothing}))
    make_pack(checkpoint, tmp_path / "pack", tiny_quantization())


@pytest.mark.parametrize(
    ("file", "method"),
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")],
)
def test_a_file_of_the_method_beside_config_json_tells_too(
    tmp_path: Path, checkpoint: Path, file: str, method: str
) -> None:
    (checkpoint / file).write_text("{}")
    assert f"with {method}" in _refused(checkpoint, tmp_path)


WEIGHT = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32))
TENSORS: dict[str, tuple[Tensors, str]] = {
    "nf4": (
        {"weight": torch.zeros(512, 1, dtype=torch.uint8), "weight.absmax": torch.zeros(16)},
        "bitsandbytes, 4 bits",
    ),
    "int8": ({"weight": WEIGHT.to(torch.int8), "SCB": torch.zeros(32)}, "bitsandbytes, 8 bits"),
    "gptq": ({"qweight": torch.zeros(4, 32, dtype=torch.int32), "g_idx": torch.zeros(32)}, "GPTQ"),
    "awq": ({"qweight": torch.zeros(32, 4, dtype=torch.int32), "qzeros": torch.zeros(1, 4)}, "GPTQ or AWQ"),
    "fp8": ({"weight": WEIGHT.to(torch.float8_e4m3fn), "weight_scale_inv": torch.zeros(1, 1)}, "FP8"),
    "fp8 alone": ({"weight": WEIGHT.to(torch.float8_e5m2)}, "FP8"),
    "mlx": (
        {"weight": torch.zeros(32, 4, dtype=torch.uint32), "scales": torch.zeros(32, 1)},
        "packed integers, as MLX",
    ),
    "compressed": ({"weight_packed": torch.zeros(32, 4, dtype=torch.int32)}, "compressed-tensors"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_of_a_method_tell_it_where_config_json_does_not(tmp_path: Path, checkpoint: Path, what: str) -> None:
    tensors, method = TENSORS[what]
    _replace(checkpoint, tensors)
    assert f"with {method}" in _refused(checkpoint, tmp_path)


@pytest.mark.parametrize(
    "card",
    ["base_model: someone/plain-7B\n", "base_model:\n- someone/plain-7B\ntags:\n- x\n", "base_model: 'someone/plain-7B'\n"],
)  # fmt: skip
def test_the_model_that_it_was_made_from_is_told_where_its_card_names_it(
    tmp_path: Path, checkpoint: Path, card: str
) -> None:
    _edit(checkpoint, quantization_config={"quant_method": "awq"}, _name_or_path="/home/me/model")
    assert _refused(checkpoint, tmp_path).endswith("that it was made from")
    (checkpoint / "README.md").write_text(f"---\nlicense: mit\n{card}---\n# A model\n")
    assert _refused(checkpoint, tmp_path).endswith("(someone/plain-7B)")
