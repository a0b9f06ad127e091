"""The exported graph: what it computes, against torch on the same pack, and what lies in its file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.exported.inputs import input_names, input_shapes, input_values
from fedlora.exported.profiles import Profile
from fedlora.graph.packed_layers import FLOAT_ACCURACY, INT8_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora_client.reference import logits as torch_logits
from fedlora_export.checks.check import TOLERANCE as CHECK_TOLERANCE
from fedlora_export.checks.check import check_graph
from fedlora_export.checks.torch_logits import torch_logits as expected_logits
from fedlora_export.export import export_base

from tests.export.graph_runs import graph_logits, open_session
from tests.reference.agreement import assert_close
from tests.tiny.adapters import LORAS, random_adapter
from tests.tiny.llamas import DEFAULT, VARIANTS, Packs, Variant, save_pack
from tests.tiny.tokens import random_tokens

Graphs = Callable[[Variant], BasePack]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_of_every_kind_of_pack_agrees_with_torch(graphs: Graphs, variant: str) -> None:
    pack = graphs(VARIANTS[variant])
    graph = pack.directory / "decoder.onnx"
    differences = check_graph(graph, pack, expected_logits(pack))
    assert differences is not None
    assert differences.keys() == {"base", "adapter"}
    # And by a comparison of the tests' own: two sequences, read whole and in parts through the cache.
    session, tokens, adapter = open_session(graph), random_tokens(pack, 2, 15), random_adapter(pack)
    for given in (None, adapter):
        adapter_inputs = input_values(given) if given else None
        expected = torch_logits(pack, tokens, given)
        assert_close(graph_logits(session, pack, tokens, adapter_inputs), expected)
        assert_close(graph_logits(session, pack, tokens, adapter_inputs, steps=(9, 1, 1, 1, 1, 1, 1)), expected)
        # ONNX Runtime's attention takes several tokens after a cache for one sequence only.
        assert_close(graph_logits(session, pack, tokens[:1], adapter_inputs, steps=(4, 1, 7, 3)), expected[:1])


def test_the_graph_agrees_with_torch_up_to_the_end_of_the_context(graphs: Graphs, session: Any) -> None:
    pack = graphs(DEFAULT)
    context = pack.shape.max_positions
    tokens = random_tokens(pack, 1, context)
    expected = torch_logits(pack, tokens, None)
    assert_close(graph_logits(session, pack, tokens), expected)
    assert_close(graph_logits(session, pack, tokens, steps=(context - 2, 1, 1)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_an_adapter_the_logits_are_those_of_explicit_inputs_of_rank_0_bit_for_bit(
    graphs: Graphs, variant: str
) -> None:
    pack = graphs(VARIANTS[variant])
    session, tokens = open_session(pack.directory / "decoder.onnx"), random_tokens(pack, 1, 9)
    shapes = input_shapes(pack.shape.linear_modules())
    zeros = {name: np.zeros([0 if n == -1 else n for n in shape], np.float32) for name, shape in shapes.items()}
    plain = graph_logits(session, pack, tokens)
    assert np.array_equal(graph_logits(session, pack, tokens, zeros), plain)
    assert not np.array_equal(graph_logits(session, pack, tokens, input_values(random_adapter(pack))), plain)


@pytest.mark.parametrize("accuracy_level", [FLOAT_ACCURACY, INT8_ACCURACY])
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_an_adapter_the_logits_are_those_of_the_graph_without_adapters_bit_for_bit(
    packs: Packs, tmp_path: Path, variant: str, accuracy_level: int
) -> None:
    """In a prompt and in the steps after it, though `base` and `fast` take q, k and v, and gate and up, as one product."""
    profiles: tuple[Profile, ...] = ("base", "compat", "fast")
    written = export_base(
        packs(VARIANTS[variant]), tmp_path / "model", profiles=profiles, accuracy_level=accuracy_level
    )
    pack = open_pack(tmp_path / "model")
    tokens, sessions = random_tokens(pack, 1, 9), {graph.profile: open_session(graph.path) for graph in written}
    for steps in ((9,), (6, 1, 1, 1)):
        alone = graph_logits(sessions["base"], pack, tokens, steps=steps)
        for profile in ("compat", "fast"):
            assert np.array_equal(graph_logits(sessions[profile], pack, tokens, steps=steps), alone), (profile, steps)


@pytest.mark.parametrize("config", LORAS)
def test_adapters_of_every_configuration_agree_with_torch(graphs: Graphs, session: Any, config: str) -> None:
    pack = graphs(DEFAULT)
    tokens, adapter = random_tokens(pack, 1, 12), random_adapter(pack, LORAS[config])
    got = graph_logits(session, pack, tokens, input_values(adapter))
    assert_close(got, torch_logits(pack, tokens, adapter))
    assert np.abs(got - graph_logits(session, pack, tokens)).max() > 0.1


def test_every_single_input_acts_on_its_own_module(graphs: Graphs, session: Any) -> None:
    pack = graphs(DEFAULT)
    tokens, whole = random_tokens(pack, 1, 8), random_adapter(pack)
    plain = graph_logits(session, pack, tokens)
    for module in pack.shape.linear_modules():
        single = Adapter(whole.config, {module: whole.pairs[module]})
        got = graph_logits(session, pack, tokens, input_values(single))
        assert_close(got, torch_logits(pack, tokens, single))
        assert not np.allclose(got, plain, atol=1e-3), module


def test_the_optional_inputs_are_the_inputs_of_every_linear_module_and_no_other(graphs: Graphs, session: Any) -> None:
    pack = graphs(DEFAULT)
    adapter_inputs = input_shapes(pack.shape.linear_modules())
    layers = range(pack.shape.num_layers)
    cache = {f"past_key_values.{layer}.{kind}" for layer in layers for kind in ("key", "value")}
    # ONNX Runtime lists inputs that have a default apart from those that must be fed.
    assert {value.name for value in session.get_inputs()} == {"input_ids", "attention_mask"} | cache
    optional = {value.name: value for value in session.get_overridable_initializers()}
    assert optional.keys() == adapter_inputs.keys() | {"logits_to_keep"}
    for name, shape in adapter_inputs.items():
        assert [got for got, want in zip(optional[name].shape, shape, strict=True) if want != -1] == [
            want for want in shape if want != -1
        ]
    presents = [f"present.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    assert [value.name for value in session.get_outputs()] == ["logits", *presents]


def test_each_input_has_a_rank_of_its_own(graphs: Graphs) -> None:
    pack = graphs(DEFAULT)
    model = onnx.load(pack.directory / "decoder.onnx", load_external_data=False)
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    ranks = []
    for module in pack.shape.linear_modules():
        name_a, name_b = input_names(module)
        assert dims[name_a][1].dim_param == dims[name_b][0].dim_param != ""
        ranks.append(dims[name_a][1].dim_param)
    assert len(set(ranks)) == len(ranks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_base_weight_is_external_data_at_its_place_in_the_packs_file(graphs: Graphs, variant: str) -> None:
    pack = graphs(VARIANTS[variant])
    graph = pack.directory / "decoder.onnx"
    model = onnx.load(graph, load_external_data=False)
    weights = (pack.directory / "model.safetensors").read_bytes()
    seen = set()
    inline = 0
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            inline += len(tensor.SerializeToString())
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == "model.safetensors"
        begin, size = int(where["offset"]), int(where["length"])
        name = next(n for n in pack.weights.entries if tensor.name == n or tensor.name.startswith(f"{n}."))
        assert weights[begin : begin + size] == pack.weights.array(name).tobytes()
        itemsize = {onnx.TensorProto.UINT8: 1, onnx.TensorProto.FLOAT: 4}[tensor.data_type]
        assert math.prod(tensor.dims) * itemsize == size
        seen.add(name)
    assert seen == set(pack.weights.entries)
    # What lies inside are a few shapes and frequencies; no bytes of a weight, and no table of positions.
    assert inline <= 2000 + 100 * 2 * len(pack.shape.linear_modules())
    content = graph.read_bytes()
    for name in pack.weights.entries:
        data = pack.weights.array(name).tobytes()
        assert data[: max(16, len(data) // 4)] not in content, name


def test_a_larger_model_of_the_same_layers_has_a_graph_of_the_same_size(
    graphs: Graphs,
) -> None:
    small = graphs(DEFAULT)
    large = graphs(Variant(hidden=256, inner=700))
    sizes = [(pack.directory / "decoder.onnx").stat().st_size for pack in (small, large)]
    assert abs(sizes[1] - sizes[0]) < 2000  # numbers of more digits
    assert (large.directory / "model.safetensors").stat().st_size > 5 * sizes[1]


def test_the_graph_declares_the_versions_that_it_was_tested_with(graphs: Graphs) -> None:
    pack = graphs(DEFAULT)
    model = onnx.load(pack.directory / "decoder.onnx", load_external_data=False)
    assert model.ir_version == 11
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23, "com.microsoft": 1}
    assert {entry.key: entry.value for entry in model.metadata_props} == {"fedlora_base": pack.fingerprint}
    onnx.checker.check_model(str(pack.directory / "decoder.onnx"))
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


def test_exporting_beside_the_pack_leaves_the_pack_as_it_was(tmp_path: Path) -> None:
    pack = save_pack(DEFAULT, tmp_path / "pack")
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in pack.directory.iterdir()}
    (exported,) = export_base(pack)
    graph = exported.path
    assert graph == pack.directory / "decoder.onnx"
    assert exported.exact is not None
    assert all(0 <= value <= CHECK_TOLERANCE * 100 for value in exported.exact.values())
    after = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in pack.directory.iterdir()}
    assert after.pop("decoder.onnx")
    assert after.pop("decoder.onnx.json")
    for name in ("genai_config.json", "tokenizer_config.json"):  # for onnxruntime-genai; the pack had neither
        assert after.pop(name)
    assert after == before
    assert open_pack(pack.directory).fingerprint == pack.fingerprint
    # A second time gives the same bytes.
    first = graph.read_bytes()
    export_base(open_pack(pack.directory))
    assert graph.read_bytes() == first
