"""Adapter files for the profile fast, whose inputs are those of a group of modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.inputs import input_values, joined_name, joined_values, modules_of
from fedlora.exported.profiles import Profile, graph_inputs
from fedlora.exported.sidecar import sidecar_of
from fedlora.lora.config import MAX_RANK, LoraConfig
from fedlora_export.adapter_export import write_onnx_adapter

from tests.tiny.adapters import adapter_on

UP = "model.layers.0.mlp.up_proj"
CONFIG = LoraConfig(rank=4, alpha=8.0, rank_pattern={UP: 2}, target_modules=("up_proj", "q_proj"))
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def joined_path(pack: BasePack, tmp_path: Path) -> Path:
    """An adapter file for the profile fast, with its manifest."""
    path = tmp_path / "joined.onnx_adapter"
    adapter = adapter_on(CONFIG, pack.model.linear_modules())
    write_onnx_adapter(adapter, pack.fingerprint, path, joined_for=pack.model)
    return path


def load(pack: BasePack, path: Path, profile: Profile = "fast") -> Any:
    adapter_inputs = graph_inputs(pack.model, profile)
    return load_adapter_file(path, base_fingerprint=pack.fingerprint, inputs=adapter_inputs, profile=profile)


def test_a_joined_file_is_loaded_for_a_graph_of_its_profile_and_no_other(pack: BasePack, joined_path: Path) -> None:
    verified, adapter = load(pack, joined_path), adapter_on(CONFIG, pack.model.linear_modules())
    expected = joined_values(input_values(adapter), pack.model.linear_modules(), pack.model.linear_groups())
    assert verified.values.keys() == expected.keys()
    assert all(np.array_equal(verified.values[name], expected[name]) for name in expected)
    assert verified.manifest.profile == "fast"
    assert verified.manifest.inputs == {name: value.shape for name, value in expected.items()}
    assert verified.manifest.ranks == {module: pair.rank for module, pair in adapter.pairs.items()}
    with pytest.raises(AdapterMismatchError, match="made for profile fast, this graph is compat; export the adapter"):
        load(pack, joined_path, "compat")
    sidecar_of(joined_path).unlink()
    assert load(pack, joined_path).manifest is None
    with pytest.raises(
        AdapterMismatchError, match=r"no adapter input .*q_proj\+k_proj\+v_proj.*another base or profile"
    ):
        load(pack, joined_path, "compat")


def test_a_file_of_single_modules_is_refused_for_the_profile_fast(pack: BasePack, tmp_path: Path) -> None:
    path = tmp_path / "single.onnx_adapter"
    write_onnx_adapter(adapter_on(CONFIG, pack.model.linear_modules()), pack.fingerprint, path)
    with pytest.raises(AdapterMismatchError, match="made for profile compat, this graph is fast") as caught:
        load(pack, path)
    assert "fedlora export-adapter --profile fast" in str(caught.value)


JOINED_DAMAGES: dict[str, tuple[Change, str]] = {
    "a module missing": (lambda v: v["ranks"].pop(UP), "do not name the same modules"),
    "a module of no group": (lambda v: v["ranks"].update({"x.q_proj": 4}), "do not name the same modules"),
    "a module too many": (
        lambda v: v["ranks"].update({UP.replace("up", "gate"): 4}), r"gate_proj\+up_proj' has rank 2 and 2, ranks says 6"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED_DAMAGES)
def test_ranks_that_do_not_sum_up_to_the_joined_inputs_are_refused(
    pack: BasePack, joined_path: Path, name: str
) -> None:
    change, words = JOINED_DAMAGES[name]
    values = json.loads(sidecar_of(joined_path).read_text())
    change(values)
    sidecar_of(joined_path).write_text(json.dumps(values))
    with pytest.raises(AdapterError, match=words):
        load(pack, joined_path)


def test_a_joined_input_may_be_as_wide_as_all_its_modules_at_their_largest(pack: BasePack, tmp_path: Path) -> None:
    modules, path = pack.model.linear_modules(), tmp_path / "wide.onnx_adapter"
    config = LoraConfig(rank=MAX_RANK, alpha=8.0, target_modules=("gate_proj", "up_proj"))
    write_onnx_adapter(adapter_on(config, modules), pack.fingerprint, path, joined_for=pack.model)
    group = joined_name([UP.replace("up_proj", "gate_proj"), UP])
    assert load(pack, path).values[f"{group}.lora_A.weight"].shape[1] == 2 * MAX_RANK


def test_the_modules_of_a_group_are_known_by_its_name(pack: BasePack) -> None:
    groups = pack.model.linear_groups()
    assert any(len(group) > 1 for group in groups)
    assert all(modules_of(joined_name(group)) == list(group) for group in groups)
