"""What reads files of strangers, each as a function from a random generator to nothing: one damaged file, read.

A target returns True where the reader took the file, and has then checked that what was read is sound; it returns False
where the reader refused with an error of ours. Anything else is a failure of the test that calls it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from fedlora.base.pack import WEIGHTS, BasePack, fingerprint_of, open_pack, tensor_shapes
from fedlora.base.quantize import Quantization
from fedlora.errors import FedloraError
from fedlora.exported.adapter_file import load_adapter_file, parse_adapter_file
from fedlora.exported.graph_manifest import check_graph_file, write_graph_manifest
from fedlora.exported.inputs import input_shapes, input_values
from fedlora.exported.profiles import graph_inputs
from fedlora.exported.sidecar import sidecar_of
from fedlora.family import ModelShape, model_shape
from fedlora.family.decoders import DECODERS
from fedlora.family.encoders import ENCODERS
from fedlora.graph.graph_check import read_checked_graph
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.export import build_graph

from tests.fuzz.formats import changed
from tests.fuzz.mutations import damaged_bytes, damaged_json, damaged_text
from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import tiny_pack, write_checkpoint

Target = Callable[[random.Random], bool]
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def fuzz_targets(folder: Path) -> Mapping[str, Target]:
    """Every target, with its sound files below `folder`."""
    base = tiny_pack(folder / "pack", write_checkpoint(folder / "tiny-llama"))
    return {
        "pack as it is": _pack(folder, base, signed_again=False),
        "pack, signed again": _pack(folder, base, signed_again=True),
        "config.json of any family": _config,
        "PEFT directory": _peft(folder, base),
        "adapter file": _adapter_file(folder, base, with_manifest=False),
        "adapter file and manifest": _adapter_file(folder, base, with_manifest=True),
        "graph manifest": _graph_manifest(folder, base),
        "graph": _graph(base),
    }


def _refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except FedloraError:
        return True
    return False


def _pack(folder: Path, base: BasePack, *, signed_again: bool) -> Target:
    sound = {path.name: path.read_bytes() for path in base.directory.iterdir()}
    place = folder / f"damaged-pack-{signed_again}"
    shutil.copytree(base.directory, place)
    manifest = json.loads(sound["base.json"])
    expected = {name: base.weights.array(name).tobytes() for name in base.weights.entries}

    def target(chance: random.Random) -> bool:
        name = chance.choice(("base.json", "model.safetensors", "config.json"))
        if name == "model.safetensors":
            content = _damaged_tensors(sound[name], chance)
        else:
            content = damaged_text(json.loads(sound[name]), chance)
        (place / name).write_bytes(content)
        if signed_again:
            _sign(place, content if name == "base.json" else None, name, manifest)
        opened: list[BasePack] = []
        refused = _refused(lambda: opened.append(open_pack(place)))
        if not refused:
            (pack,) = opened
            got = {tensor: pack.weights.array(tensor).tobytes() for tensor in pack.weights.entries}
            assert {tensor: len(data) for tensor, data in got.items()} == {t: len(d) for t, d in expected.items()}
            for module in pack.model.linear_modules() | pack.model.vocabulary_modules():
                pack.matrix(module)
            assert signed_again or (
                got == expected and pack.model == base.model and pack.fingerprint == base.fingerprint
            )
        for restored in ("base.json", name):
            (place / restored).write_bytes(sound[restored])
        return not refused

    return target


def _config(chance: random.Random) -> bool:
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
        "max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e4, "sliding_window": 8,
        "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "type_vocab_size": 2, "pad_token_id": 0,
        "eos_token_id": [2], "id2label": {"0": "a", "1": "b"}, "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"], "original_max_position_embeddings": 32,
    }  # fmt: skip
    scaling = {
        "rope_type": chance.choice(("default", "linear", "dynamic", "llama3", "yarn", "longrope")), "factor": 2.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "rope_theta": 1e4,
    }  # fmt: skip
    sound = {"architectures": [chance.choice([*DECODERS, *ENCODERS])], **sizes}
    if chance.random() < 0.7:
        sound["rope_parameters"] = (
            scaling if chance.random() < 0.6 else {"full_attention": scaling, "sliding_attention": scaling}
        )
    read: list[ModelShape] = []
    if _refused(lambda: read.append(model_shape(damaged_json(sound, chance), "here"))):
        return False
    assert len(tensor_shapes(read[0], Quantization())) < 40_000
    assert all(size > 0 for shape in read[0].linear_modules().values() for size in shape)
    return True


def _sign(place: Path, manifest_text: bytes | None, name: str, sound: dict[str, Any]) -> None:
    """Make base.json agree with the files, and its fingerprint with it, where it still has a place for them."""
    try:
        manifest = json.loads(manifest_text) if manifest_text is not None else json.loads(json.dumps(sound))
        if manifest_text is None:
            manifest["files"][name] = hashlib.sha256((place / name).read_bytes()).hexdigest()
        manifest["fingerprint"] = fingerprint_of(manifest)
        (place / "base.json").write_text(json.dumps(manifest))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return  # no longer an object: read as it is


def _damaged_tensors(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with its header damaged as JSON, or any of its bytes."""
    length = int.from_bytes(data[:8], "little")
    if chance.random() < 0.2:
        return damaged_bytes(data, chance)
    if chance.random() < 0.3:
        return damaged_bytes(data[: 8 + length], chance) + data[8 + length :]
    text = json.dumps(damaged_json(json.loads(data[8 : 8 + length]), chance)).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _peft(folder: Path, base: BasePack) -> Target:
    modules = base.model.linear_modules()
    config = LoraConfig(rank=2, alpha=4.0, target_modules=("q_proj", "up_proj"), rank_pattern={next(iter(modules)): 3})
    write_peft(
        folder / "adapter", PeftDirectory(adapter=adapter_on(config, modules), base_fingerprint=base.fingerprint)
    )
    sound = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}

    def target(chance: random.Random) -> bool:
        name = chance.choice((_ADAPTER_CONFIG, _ADAPTER_WEIGHTS))
        if name == _ADAPTER_CONFIG:
            content = damaged_text(json.loads(sound[name]), chance)
        else:
            content = _damaged_tensors(sound[name], chance)
        (folder / "adapter" / name).write_bytes(content)
        read: list[PeftDirectory] = []
        refused = _refused(lambda: read.append(read_peft(folder / "adapter")))
        (folder / "adapter" / name).write_bytes(sound[name])
        if not refused:
            adapter = read[0].adapter
            assert adapter.pairs
            for module, pair in adapter.pairs.items():
                assert pair.rank == adapter.config.rank_of(module)
                assert np.isfinite(pair.lora_A).all()
                assert np.isfinite(pair.lora_B).all()
            _refused(lambda: input_values(adapter))  # a scaling may be too large for a float
            _refused(lambda: adapter.check_fits(modules, "here"))
        return not refused

    return target


def _adapter_file(folder: Path, base: BasePack, *, with_manifest: bool) -> Target:
    modules = base.model.linear_modules()
    path = folder / f"{with_manifest}.onnx_adapter"
    adapter = adapter_on(LoraConfig(rank=2, alpha=4.0, target_modules=("k_proj", "down_proj")), modules)
    write_onnx_adapter(adapter, base.fingerprint, path)
    sound, manifest = path.read_bytes(), json.loads(sidecar_of(path).read_text())
    values, adapter_inputs = input_values(adapter), input_shapes(modules)
    if not with_manifest:
        sidecar_of(path).unlink()

    def target(chance: random.Random) -> bool:
        if with_manifest and chance.random() < 0.7:
            sidecar_of(path).write_bytes(damaged_text(manifest, chance))
        else:
            # Most of a file is numbers; what tells where they lie is in its beginning and its end.
            path.write_bytes(
                damaged_bytes(sound, chance) if chance.random() < 0.2 else _outside_of_numbers(sound, chance)
            )
        read: list[Any] = []
        load = lambda: read.append(  # noqa: E731
            load_adapter_file(
                path,
                base_fingerprint=base.fingerprint,
                inputs=adapter_inputs,
                allow_unnamed_base=chance.random() < 0.5,
            )
        )
        refused = _refused(load)
        if not refused:
            got = read[0].values
            for name, value in got.items():
                assert np.isfinite(value).all()
                assert all(want in (-1, size) for want, size in zip(adapter_inputs[name], value.shape, strict=True))
            if with_manifest:
                assert got.keys() == values.keys()
                assert all(np.array_equal(got[name], values[name]) for name in values)
            else:
                _same_as_onnx_runtime(path, got)
        path.write_bytes(sound)
        if with_manifest:
            sidecar_of(path).write_text(json.dumps(manifest))
        return not refused

    return target


def _outside_of_numbers(data: bytes, chance: random.Random) -> bytes:
    """Damage a file of the adapter format where its values are not."""
    file = parse_adapter_file(data, "sound")
    ends = []
    for value in file.values.values():
        begin = data.index(value.tobytes())
        ends.append((begin, begin + value.nbytes))
    gaps: Iterator[tuple[int, int]] = zip(
        [0, *(end for _, end in sorted(ends))], [*(b for b, _ in sorted(ends)), len(data)], strict=True
    )
    begin, end = chance.choice([gap for gap in gaps if gap[0] < gap[1]])
    return data[:begin] + damaged_bytes(data[begin:end], chance) + data[end:]


def _same_as_onnx_runtime(path: Path, values: Mapping[str, Any]) -> None:
    """The oracle: it reads what we take, as we read it."""
    theirs = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    assert theirs.keys() == values.keys()
    for name, value in theirs.items():
        assert np.array_equal(value.numpy(), values[name], equal_nan=True)


def _graph_manifest(folder: Path, base: BasePack) -> Target:
    graph = folder / "decoder.onnx"
    graph.write_bytes(b"a graph")
    adapter_inputs = graph_inputs(base.model, "compat")
    path = write_graph_manifest(
        graph, base_fingerprint=base.fingerprint, profile="compat", accuracy_level=0, inputs=adapter_inputs
    )
    sound = json.loads(path.read_text())

    def target(chance: random.Random) -> bool:
        if chance.random() < 0.1:
            graph.write_bytes(damaged_bytes(b"a graph", chance))
        path.write_bytes(damaged_text(sound, chance))
        read: list[Any] = []
        refused = _refused(lambda: read.append(check_graph_file(graph, base)))
        assert refused or (
            graph.read_bytes() == b"a graph" and read[0].base == base.fingerprint and read[0].inputs == adapter_inputs
        )
        graph.write_bytes(b"a graph")
        return not refused

    return target


def _graph(base: BasePack) -> Target:
    path = base.directory / "decoder.onnx"
    ir.save(build_graph(base, "compat", 0), path)
    sound = path.read_bytes()
    parts = _parts(sound)

    def target(chance: random.Random) -> bool:
        content = changed(path.name, sound, chance, (path.name, WEIGHTS))
        path.write_bytes(content)
        refused = _refused(lambda: read_checked_graph(path, base, "compat", 0))
        path.write_bytes(sound)
        assert refused or _parts(content) == parts
        return not refused

    return target


def _parts(graph: bytes) -> list[str]:
    """What protobuf's own library, the oracle, reads of a graph, whatever its order: all but the digits of numbers."""
    read = onnx.ModelProto.FromString(graph)
    nodes = [
        (
            n.name,
            n.domain,
            n.op_type,
            list(n.input),
            list(n.output),
            [(a.name, a.type, a.i, list(a.ints), a.s) for a in n.attribute],
        )
        for n in read.graph.node
    ]
    tensors = [
        (t.name, list(t.dims), t.data_type, len(t.raw_data), [(e.key, e.value) for e in t.external_data])
        for t in read.graph.initializer
    ]
    ends = [repr(value) for value in (*read.graph.input, *read.graph.output)]
    more = [len(read.functions), len(read.training_info), len(read.graph.sparse_initializer), read.ir_version]
    return sorted(map(repr, (*nodes, *tensors, *ends, *more)))
