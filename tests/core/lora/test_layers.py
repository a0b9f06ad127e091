"""Which layers get an adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig, changed, read_scenario
from fedlora.errors import ConfigError
from fedlora.lora.config import LoraConfig
from fedlora.lora.layers import chosen_layers, layer_of, layers_of
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.oracles import oracle
from tests.tiny.adapters import adapter_on, leaves_of

CONFIG = "adapter_config.json"


def modules(count: int) -> list[str]:
    return [f"model.layers.{layer}.mlp.{name}" for layer in range(count) for name in ("up_proj", "down_proj")]


@pytest.mark.parametrize(
    ("entries", "layers"),
    [
        (("0-3",), (0, 1, 2, 3)),
        (("0", "1", "-1"), (0, 1, 11)),
        (("-3--1",), (9, 10, 11)),
        (("10-11", "2-2", "11"), (2, 10, 11)),
        (("0--1",), tuple(range(12))),
        ((), ()),
    ],
)
def test_numbers_and_ranges_name_layers(entries: tuple[str, ...], layers: tuple[int, ...]) -> None:
    assert chosen_layers(entries, modules(12), "lora.layers") == layers


@given(count=st.integers(1, 40), data=st.data())
def test_a_range_is_what_python_counts_from_either_end(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(-count, count - 1))
    last = data.draw(st.integers(first % count, count - 1))
    expected = tuple(range(count)[first:][: last - first % count + 1])
    assert chosen_layers((f"{first}-{last}",), modules(count), "lora.layers") == expected
    assert chosen_layers((f"{first}-{last - count}",), modules(count), "lora.layers") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", r"lora\.layers: the base has 4 layers, from 0 to 3; got 4"),
        ("-5", r"lora\.layers: the base has 4 layers, from 0 to 3; got -5"),
        ("0-9", r"lora\.layers: the base has 4 layers, from 0 to 3; got 0-9"),
        ("3-1", r"lora\.layers: 3-1 ends before it begins; write 1-3"),
        ("first", r"lora\.layers takes numbers of layers and ranges, such as 0-3 or -1 \(the last\), got 'first'"),
        ("0:3", r"lora\.layers takes numbers .* got '0:3'"),
        ("1.5", r"lora\.layers takes numbers .* got '1\.5'"),
        ("0,,1", r"lora\.layers takes numbers .* got ''"),
        ("[[1]]", r"lora\.layers must be a list of strings"),
    ],
)
def test_what_names_no_layer_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(RunConfig(), [f"lora.layers={text}"]).lora.lora(modules(4))


@pytest.mark.parametrize("text", ['layers = "0-1"', "layers = [0, 1]", 'layers = ["0", "1"]', 'layers = ["0-1"]'])
def test_a_scenario_names_layers_in_every_form_and_flower_carries_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(f"[lora]\n{text}\n")
    config = read_scenario(tmp_path / "s.toml")
    assert config.lora.lora(modules(4)).layers == (0, 1)
    assert RunConfig.from_flat(config.flat(), "flat") == config


@pytest.mark.parametrize(("value", "layers"), [(2, (2,)), ("2", (2,)), (-1, (3,)), ("", ()), ("0,2-3", (0, 2, 3))])
def test_flowers_run_configuration_names_layers_as_text_or_as_one_number(
    value: int | str, layers: tuple[int, ...]
) -> None:
    config = RunConfig.from_flat({"lora.layers": value}, "run configuration")
    assert config.lora.lora(modules(4)).layers == layers


def test_only_modules_of_the_layers_get_an_adapter() -> None:
    config = LoraConfig(target_modules=("up_proj",), layers=(2, 0))
    assert config.layers == (0, 2)
    assert config.targets(modules(4)) == ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"]
    with pytest.raises(ConfigError, match="layers: the base has no layer 4; it has 4, from 0"):
        replace(config, layers=(0, 4)).targets(modules(4))


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("model.layers.12.mlp.up_proj", 12),
        ("encoder.layer.0.attention.self.query", 0),
        ("lm_head", None),
        ("0.x", None),
    ],
)
def test_the_layer_of_a_module_is_the_first_number_in_its_name(module: str, layer: int | None) -> None:
    assert layer_of(module) == layer
    assert layers_of([module, module]) == (() if layer is None else (layer,))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_gives_an_adapter_to_the_same_layers_and_loads_ours_equal(base: BasePack, tmp_path: Path) -> None:
    shapes = base.model.linear_modules()
    config = LoraConfig(rank=3, alpha=6.0, target_modules=leaves_of(base), layers=(1,))
    adapter = adapter_on(config, shapes)
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["layers_to_transform"] == [1]
    model = peft.PeftModel.from_pretrained(oracle(base), str(tmp_path / "a"))
    theirs = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert theirs == adapter.pairs.keys() == {module for module in shapes if layer_of(module) == 1}
    for module, pair in adapter.pairs.items():
        layer = model.base_model.model.get_submodule(module)
        assert torch.equal(layer.lora_A["default"].weight, torch.from_numpy(np.array(pair.lora_A)))
        assert torch.equal(layer.lora_B["default"].weight, torch.from_numpy(np.array(pair.lora_B)))
    back = read_peft(tmp_path / "a")
    assert back.adapter.config == adapter.config
    write_peft(tmp_path / "b", PeftDirectory(adapter=back.adapter))
    assert json.loads((tmp_path / "b" / CONFIG).read_text())["layers_to_transform"] == [1]


def test_an_adapter_of_all_layers_is_written_as_before(base: BasePack, tmp_path: Path) -> None:
    adapter = adapter_on(LoraConfig(target_modules=leaves_of(base)), base.model.linear_modules())
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter))
    assert "layers_to_transform" not in json.loads((tmp_path / "a" / CONFIG).read_text())
