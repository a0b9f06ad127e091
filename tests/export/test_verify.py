"""`fedlora verify`: a folder that was exported passes, and one that was changed in any one place does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from fedlora.adapter_manifest import read_adapter_manifest
from fedlora.errors import AdapterError, FedloraError, GraphError, PackError
from fedlora.graph_manifest import read_graph_manifest, write_graph_manifest
from fedlora.pack import BasePack, open_pack
from fedlora.profiles import PROFILES, Profile
from fedlora.sidecar import sidecar_of
from fedlora_export.allowed_ops import ALLOWED_OPS
from fedlora_export.export import build_graph, export_base
from fedlora_export.graph_rules import check_graph_rules
from fedlora_export.onnx_adapter import write_onnx_adapter
from fedlora_export.verify import verify_folder
from fedlora_export.verify_commands import verify
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.encoders import EVERY, encoder_adapter, save_encoder_pack
from tests.families import FAMILIES, family_pack
from tests.models import DEFAULT, VARIANTS, Packs, random_adapter

Model = Any  # an onnx.ModelProto: its fields are made when it runs
SLOT = "model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def exported(packs: Packs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every profile's graph and one adapter: for reading, it is shared."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_base(packs(DEFAULT), folder, profiles=PROFILES)
    base = open_pack(folder)
    write_onnx_adapter(random_adapter(base), base.fingerprint, folder / "first.onnx_adapter")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


def sign(graph: Path, base: BasePack) -> None:
    """Write the manifest of a graph that was changed, as one who wants it to pass would."""
    manifest = read_graph_manifest(graph)
    write_graph_manifest(
        graph, base_fingerprint=base.fingerprint, profile=manifest.profile, accuracy_level=0, slots=manifest.slots
    )


def test_an_exported_folder_passes_with_a_line_for_each_thing(exported: Path) -> None:
    result = CliRunner().invoke(verify, [str(exported)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith(f"base.json: base {open_pack(exported).fingerprint}; ")
    graphs = ["decoder.base.onnx", "decoder.fast.onnx", "decoder.onnx", "decoder.rows.onnx"]
    assert [line.split(":")[0] for line in lines[1:]] == [
        *(name for name in graphs for _ in range(2)),
        "first.onnx_adapter",
    ]
    assert lines[-1].endswith("14 modules of rank 4, finite; digest and base as its manifest tells")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_and_profile_keeps_the_rules(tmp_path: Path, name: str) -> None:
    written = export_base(family_pack(name), tmp_path / "model", profiles=PROFILES)
    assert len(written) == len(PROFILES)
    assert len(list(verify_folder(tmp_path / "model"))) == 1 + 2 * len(PROFILES)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_store_a_weight_keeps_the_rules(packs: Packs, tmp_path: Path, name: str) -> None:
    export_base(packs(VARIANTS[name]), tmp_path / "model", profiles=PROFILES)
    assert len(list(verify_folder(tmp_path / "model"))) == 1 + 2 * len(PROFILES)


@pytest.mark.parametrize("name", EVERY)
def test_every_encoder_and_profile_keeps_the_rules(tmp_path: Path, name: str) -> None:
    export_base(save_encoder_pack(name, tmp_path / "pack"), tmp_path / "model", profiles=PROFILES)
    base = open_pack(tmp_path / "model")
    write_onnx_adapter(encoder_adapter(base), base.fingerprint, tmp_path / "model" / "a.onnx_adapter")
    assert len(list(verify_folder(tmp_path / "model"))) == 2 + 2 * len(PROFILES)


def test_every_allowed_operation_is_in_some_graph(packs: Packs, tmp_path: Path) -> None:
    bases = [
        *(packs(variant) for variant in VARIANTS.values()),
        *(family_pack(name) for name in FAMILIES),
        *(save_encoder_pack(name, tmp_path / name.replace(" ", "-")) for name in EVERY),
    ]
    used = {
        (node.domain, node.op_type)
        for base in bases
        for profile in PROFILES
        for node in build_graph(base, profile, 4).graph
    }
    assert used == {(domain, kind) for domain, kinds in ALLOWED_OPS.items() for kind in kinds}


def initializer(model: Model, *, external: bool = True) -> Any:
    """The first initializer outside, or inside, the graph."""
    inputs = {value.name for value in model.graph.input}
    return next(
        tensor
        for tensor in model.graph.initializer
        if (tensor.data_location == TensorProto.EXTERNAL) == external and tensor.name not in inputs
    )


def external(**changes: str) -> Callable[[Model], None]:
    """Change the place of the first external initializer."""

    def change(model: Model) -> None:
        for entry in initializer(model).external_data:
            entry.value = changes.get(entry.key, entry.value)

    return change


def shifted(key: str, bytes_: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for entry in initializer(model).external_data:
            if entry.key == key:
                entry.value = str(int(entry.value) + bytes_)

    return change


def add_node(kind: str, domain: str = "", **attributes: Any) -> Callable[[Model], object]:
    return lambda model: model.graph.node.append(
        helper.make_node(kind, [model.graph.output[0].name], ["new"], name="new", domain=domain, **attributes)
    )


def large_constant(model: Model) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(20_000, np.float32), "large"))


def constant_node(model: Model) -> None:
    node = model.graph.node.add(op_type="Neg", name="large", output=["large"])
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(20_000, np.float32))))


def hidden_external(model: Model) -> None:
    tensor = TensorProto(name="x", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = model.graph.node.add(op_type="Neg", name="new", output=["x"])
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))


def subgraph(model: Model) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))


def function(model: Model) -> None:
    model.functions.append(helper.make_function("", "Add", ["a"], ["b"], [], []))


def default_of(model: Model, array: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == SLOT:
            tensor.CopyFrom(numpy_helper.from_array(array, SLOT))


def without_slot(model: Model) -> None:
    model.graph.input.remove(next(value for value in model.graph.input if value.name == SLOT))


def set_fixed_rank(model: Model) -> None:
    next(value for value in model.graph.input if value.name == SLOT).type.tensor_type.shape.dim[1].dim_value = 4


CHANGES: dict[str, tuple[Callable[[Model], object], str]] = {
    "an operation that loops": (add_node("Loop"), "node 'new' is '' 'Loop', which the exporter does not write"),
    "an operation of another domain": (add_node("Add", "evil"), "node 'new' is 'evil' 'Add'"),
    "an operation that reads files": (add_node("ImageDecoder"), "'ImageDecoder'"),
    "a subgraph in a known operation": (subgraph, "attribute 'body' is a GRAPH"),
    "a function": (function, "it has functions"),
    "another IR version": (lambda m: setattr(m, "ir_version", 9), "IR version 9, expected 11"),
    "another operator set": (lambda m: setattr(m.opset_import[0], "version", 9), "of version 9, expected"),
    "a set of another domain": (lambda m: m.opset_import.add(domain="evil", version=1), "operator set 'evil'"),
    "a set twice": (lambda m: m.opset_import.append(m.opset_import[0]), "an operator set is named twice"),
    "another base": (lambda m: setattr(m.metadata_props[0], "value", "x"), "made for base x, the pack is"),
    "another file": (external(location="other.bin"), "lies in 'other.bin'; expected model.safetensors"),
    "a path upwards": (external(location="../model.safetensors"), r"lies in '\.\./model.safetensors'"),
    "an absolute path": (external(location="/etc/passwd"), "lies in '/etc/passwd'"),
    "an offset of words": (external(offset="-8"), "offset is '-8'; expected a number"),
    "an offset beyond the end": (shifted("offset", 10**9), "are no tensors of model.safetensors"),
    "an offset into the header": (external(offset="0"), "are no tensors of model.safetensors"),
    "an offset within a tensor": (shifted("offset", 4), "are no tensors of model.safetensors"),
    "a length within a tensor": (shifted("length", -4), "are no tensors of model.safetensors"),
    "a shape of other bytes": (lambda m: initializer(m).dims.append(2), "bytes long"),
    "a negative shape": (lambda m: initializer(m).dims.__setitem__(0, -1), "is of type"),
    "another dtype": (lambda m: setattr(initializer(m), "data_type", 7), "is of type 7"),
    "a checksum": (
        lambda m: initializer(m).external_data.add(key="checksum", value="0"),
        "expected location, offset and",
    ),
    "values beside a place": (
        lambda m: setattr(initializer(m), "raw_data", b"x"),
        "has more than a name, a shape and a place",
    ),
    "an initializer twice": (lambda m: m.graph.initializer.append(initializer(m)), "name appears twice"),
    "a weight inside": (large_constant, "constant 'large' has"),
    "a weight inside a node": (constant_node, "constant '' has"),
    "a file in a node": (hidden_external, "constant 'x' has .* or lies outside the graph"),
    "an adapter that is always on": (
        lambda m: default_of(m, np.ones((64, 4), np.float32)),
        r"has a default of \[64, 4\]",
    ),
    "a slot missing": (without_slot, "is an adapter input of the graph or of the base, not of both"),
    "a slot of one rank": (set_fixed_rank, r"q_proj\.lora_A\.weight is \[64, 4\]"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_was_changed_is_refused_though_its_manifest_agrees(folder: Path, name: str) -> None:
    change, words = CHANGES[name]
    graph, base = folder / "decoder.onnx", open_pack(folder)
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=r"decoder\.onnx: .*, its manifest says"):
        list(verify_folder(folder))
    sign(graph, base)
    with pytest.raises(GraphError, match=words) as caught:
        list(verify_folder(folder))
    assert str(caught.value).startswith(str(graph))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_a_file_that_is_no_graph_is_refused(folder: Path, content: bytes) -> None:
    (folder / "decoder.onnx").write_bytes(content)
    sign(folder / "decoder.onnx", open_pack(folder))
    with pytest.raises(GraphError, match=r"decoder\.onnx: (not an ONNX graph|IR version 0)"):
        list(verify_folder(folder))


def test_rules_of_one_profile_are_not_those_of_another(exported: Path) -> None:
    base = open_pack(exported)
    graphs: dict[Profile, str] = {"compat": "decoder.onnx", "fast": "decoder.fast.onnx", "rows": "decoder.rows.onnx"}
    for profile in PROFILES:
        for own, graph in graphs.items():
            if own == profile:
                assert check_graph_rules(exported / graph, base, profile).slots > 0
            else:
                with pytest.raises(GraphError, match=r"adapter input"):
                    check_graph_rules(exported / graph, base, profile)


def test_graphs_and_weights_that_are_links_are_refused(folder: Path) -> None:
    for name in ("decoder.base.onnx", "model.safetensors"):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)
        with pytest.raises(GraphError, match=f"{name}: expected a file, no link"):
            list(verify_folder(folder))
        (folder / name).unlink()
        (folder.parent / name).rename(folder / name)


def spoil_adapter(folder: Path) -> None:
    path = folder / "first.onnx_adapter"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def link_adapter(folder: Path) -> None:
    (folder / "first.onnx_adapter").rename(folder.parent / "elsewhere")
    (folder / "first.onnx_adapter").symlink_to(folder.parent / "elsewhere")


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def remove(names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.glob(names):
            path.unlink()

    return change


FOLDERS: dict[str, tuple[Callable[[Path], object], type[FedloraError], str]] = {
    "weights": (flip("model.safetensors"), PackError, "sha256 is .*, base.json says"),
    "graph": (flip("decoder.rows.onnx"), GraphError, r"decoder\.rows\.onnx: sha256 is .*, its manifest says"),
    "adapter": (spoil_adapter, AdapterError, "the file is damaged"),
    "a graph's manifest": (remove("decoder.onnx.json"), GraphError, "no such file; write the graph and"),
    "an adapter's link": (link_adapter, AdapterError, r"first\.onnx_adapter: a link; expected a file"),
    "a graph that is gone": (remove("decoder.fast.onnx"), GraphError, "which is not there; copy both"),
    "an adapter that is gone": (remove("first.onnx_adapter"), AdapterError, "which is not there"),
    "all graphs": (remove("decoder*"), GraphError, "write one with: fedlora export"),
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_was_changed_is_refused_by_its_place(folder: Path, what: str) -> None:
    change, kind, words = FOLDERS[what]
    change(folder)
    with pytest.raises(kind, match=words):
        list(verify_folder(folder))


def test_an_adapter_without_a_manifest_passes_and_is_said_to_be_known_by_31_bits(folder: Path) -> None:
    sidecar_of(folder / "first.onnx_adapter").unlink()
    assert read_adapter_manifest(folder / "first.onnx_adapter") is None
    assert list(verify_folder(folder))[-1].endswith("no manifest, so its base is known by 31 bits at most")


def test_a_manifest_may_say_more_in_a_later_version_only(folder: Path) -> None:
    path = sidecar_of(folder / "decoder.onnx")
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra": 1}))
    with pytest.raises(GraphError, match="expected the fields format, version, base"):
        list(verify_folder(folder))
