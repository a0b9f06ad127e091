"""What an exported adapter file adds to a model, against the update that PEFT itself computes from the same directory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.exported.adapter_file import parse_adapter_file
from fedlora.exported.inputs import input_names, is_of_factors
from fedlora.peft.directory import read_peft, write_peft
from fedlora_export.adapter_export import export_peft

from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle, peft_encoder
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import BARE, ENCODERS, save_encoder_pack

_TARGETS = ["q_proj", "up_proj", "down_proj"]
# Every option that changes which modules have an adapter, or how large its update is; and those that must not.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "a rank pattern": {
        "rank_pattern": {"up_proj": 2, r"layers\.1\..*down_proj": 5, "^model.layers.0.self_attn.q_proj": 7}
    },
    "an alpha pattern": {"alpha_pattern": {r"layers.0.mlp.*": 3, "up_proj": 11}},
    "both patterns and rsLoRA": {
        "use_rslora": True,
        "rank_pattern": {r"model\.layers\.(0|7)\.mlp\.(?:up|gate)_proj": 9, r".*\.[1-9]\d*\.self_attn\..+": 1},
        "alpha_pattern": {r"(\w+\.)*down_proj": 2.5, r"model\.layers\.\d{1,2}\.self_attn\.q_proj$": 40},
    },
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "one layer": {"layers_to_transform": [1]},
    "one layer by its pattern": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "targets by expression": {"target_modules": r".*\.(q_proj|down_proj)"},
    "targets by their whole name": {"target_modules": ["model.layers.0.mlp.up_proj", "self_attn.v_proj"]},
    "excluded modules": {"exclude_modules": ["model.layers.1.mlp.up_proj"]},
    "all linear modules": {"target_modules": "all-linear"},
    "another initialization": {"init_lora_weights": "orthogonal", "r": 4},
}


def saved_by_peft(base: BasePack, directory: Path, options: Mapping[str, Any]) -> Any:
    """PEFT's model with random factors, saved as PEFT saves it."""
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": _TARGETS, "task_type": "CAUSAL_LM", **options}
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to True", UserWarning)
        model = peft.get_peft_model(oracle(base), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    if "fan_in_fan_out" in options:  # PEFT corrects it in the model; a file may say it all the same
        path = directory / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": True}))
    return model


def deltas(model: Any) -> dict[str, Any]:
    """{module: the update of its weight [O, I]} by PEFT's own computation."""
    return {
        name: layer.get_delta_weight("default").detach().numpy()
        for name, layer in model.base_model.model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def assert_file_holds(path: Path, expected: Mapping[str, Any]) -> None:
    """x A B, with the inputs A and B of the file, is x times each update; there is no other, but for heads."""
    values = parse_adapter_file(path.read_bytes(), str(path)).values
    values = {name: value for name, value in values.items() if is_of_factors(name)}
    assert values.keys() == {name for module in expected for name in input_names(module)}
    for module, delta in expected.items():
        name_a, name_b = input_names(module)
        assert_close(values[name_a] @ values[name_b], delta.T)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_adapter_file_holds_the_update_that_peft_computes(base: BasePack, tmp_path: Path, name: str) -> None:
    model = saved_by_peft(base, tmp_path / "peft", OPTIONS[name])
    export_peft(tmp_path / "peft", tmp_path / "a.onnx_adapter", base)
    expected = deltas(model)
    assert expected
    assert_file_holds(tmp_path / "a.onnx_adapter", expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_of_16_bits_give_the_update_of_their_own_values(
    base: BasePack, tmp_path: Path, dtype: torch.dtype
) -> None:
    import safetensors.torch

    model = saved_by_peft(base, tmp_path / "peft", OPTIONS["both patterns and rsLoRA"])
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    halves = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(weights).items()}
    safetensors.torch.save_file(halves, weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(parameter.to(dtype).float())
    export_peft(tmp_path / "peft", tmp_path / "a.onnx_adapter", base)
    assert_file_holds(tmp_path / "a.onnx_adapter", deltas(model))


@pytest.mark.parametrize("name", BARE)
def test_an_adapter_of_an_encoder_holds_the_update_that_peft_computes(tmp_path: Path, name: str) -> None:
    base = save_encoder_pack(name, tmp_path / "pack")
    model, _ = peft_encoder(base, random_adapter(base))
    model.save_pretrained(tmp_path / "peft")
    export_peft(tmp_path / "peft", tmp_path / "a.onnx_adapter", base)
    assert_file_holds(tmp_path / "a.onnx_adapter", deltas(model))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_adapter_whose_head_stays_the_bases_is_exported_as_advised(tmp_path: Path, name: str) -> None:
    base = save_encoder_pack(name, tmp_path / "pack")
    adapter = random_adapter(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(oracle(base), peft.LoraConfig(task_type=None, target_modules=list(adapter.pairs)))
    assert all(".lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model.save_pretrained(tmp_path / "advised")
    export_peft(tmp_path / "advised", tmp_path / "advised.onnx_adapter", base)
    # So is one with a head that PEFT saved, but nobody trained.
    model, _ = peft_encoder(base, adapter)
    model.save_pretrained(tmp_path / "peft")
    export_peft(tmp_path / "peft", tmp_path / "a.onnx_adapter", base)
    assert_file_holds(tmp_path / "a.onnx_adapter", deltas(model))


def test_what_is_written_back_from_peft_exports_the_same_file(base: BasePack, tmp_path: Path) -> None:
    saved_by_peft(base, tmp_path / "peft", OPTIONS["both patterns and rsLoRA"])
    write_peft(tmp_path / "ours", read_peft(tmp_path / "peft"))
    for name in ("peft", "ours"):
        export_peft(tmp_path / name, tmp_path / f"{name}.onnx_adapter", base)
    first, second = (
        parse_adapter_file((tmp_path / f"{name}.onnx_adapter").read_bytes(), name).values for name in ("peft", "ours")
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
