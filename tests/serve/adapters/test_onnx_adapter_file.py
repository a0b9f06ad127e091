"""Reading .onnx_adapter files, and refusing what ONNX Runtime itself would accept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.exported.adapter_file import AdapterFile, load_adapter_file, parse_adapter_file
from fedlora.exported.inputs import input_values, model_version
from fedlora.exported.profiles import graph_inputs
from fedlora.exported.sidecar import sidecar_of
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_serve.local.engine import Engine
from numpy.typing import NDArray

from tests.export.graph_runs import open_session
from tests.tiny.adapters import ALL_RANKS, random_adapter
from tests.tiny.llamas import Variant, save_pack

MODULE = "model.layers.1.self_attn.v_proj"
Values = dict[str, NDArray[Any]]


def write_file(path: Path, values: Mapping[str, NDArray[Any]], version: int) -> Path:
    """A file as ONNX Runtime's own writer makes it, unchecked."""
    content = ort.AdapterFormat()
    content.set_adapter_version(1)
    content.set_model_version(version)
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    content.export_adapter(str(path))
    return path


def read(path: Path) -> AdapterFile:
    return parse_adapter_file(path.read_bytes(), str(path))


@pytest.fixture
def values(base: BasePack) -> Values:
    """The values of a sound adapter."""
    return dict(input_values(random_adapter(base)))


def test_onnx_runtimes_own_example_is_read_and_acts_as_published(shared: Path) -> None:
    folder = shared / "fixtures" / "ort-lora"
    adapter = read(folder / "adapter.orl")
    assert {name: value.shape for name, value in adapter.values.items()} == {
        "lora_param_a": (4, 1),
        "lora_param_b": (1, 4),
    }
    session = open_session(folder / "lora_model.onnx")
    feeds = {"input": np.ones((4, 4), np.float32)}
    (without,) = session.run(None, feeds)
    (with_adapter,) = session.run(None, {**feeds, **adapter.values})
    # Ones times W [[1..4] [5..8] ..] sum to [28 32 36 40]; the adapter adds (3 + 4 + 5 + 6) * [7 8 9 10].
    assert np.array_equal(without, np.tile(np.array([28, 32, 36, 40], np.float32), (4, 1)))
    assert np.array_equal(with_adapter, np.tile(np.array([154, 176, 198, 220], np.float32), (4, 1)))


def test_what_is_read_is_a_copy_that_survives_its_file(tmp_path: Path, base: BasePack, values: Values) -> None:
    path = write_file(tmp_path / "a", values, 5)
    adapter = read(path)
    path.write_bytes(b"")  # a mapped file would end the process here
    assert adapter.model_version == 5
    assert adapter.values.keys() == values.keys()
    assert all(np.array_equal(adapter.values[name], values[name]) for name in values)


def test_a_sound_file_is_loaded_by_the_engine(tmp_path: Path, engine: Engine, values: Values) -> None:
    loaded = engine.load_adapter(write_file(tmp_path / "a", values, model_version(engine.base.fingerprint)))
    assert all(np.array_equal(loaded.inputs[name], value) for name, value in values.items())
    assert loaded.inputs.keys() == values.keys()


def test_an_adapter_of_some_modules_and_many_ranks_is_loaded(tmp_path: Path, engine: Engine) -> None:
    adapter = random_adapter(engine.base, ALL_RANKS)
    path = tmp_path / "a"
    write_onnx_adapter(adapter, engine.base.fingerprint, path)
    assert len(engine.load_adapter(path).inputs) == 2 * len(adapter.pairs)
    sidecar_of(path).unlink()
    some = {name: value for name, value in input_values(adapter).items() if "layers.1.mlp" in name}
    write_file(path, some, model_version(engine.base.fingerprint))
    assert engine.load_adapter(path).inputs.keys() == some.keys()


def without_b(values: Values) -> Values:
    return {name: value for name, value in values.items() if name != f"{MODULE}.lora_B.weight"}


def without_a(values: Values) -> Values:
    return {name: value for name, value in values.items() if name != f"{MODULE}.lora_A.weight"}


def replaced(name: str, value: NDArray[Any]) -> Any:
    return lambda values: {**values, f"{MODULE}.{name}.weight": value}


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


MISFITS = {
    "unknown-module": (
        lambda values: {**values, "model.layers.9.mlp.up_proj.lora_A.weight": zeros(64, 4)},
        "no adapter input model.layers.9.mlp.up_proj.lora_A.weight",
    ),
    "another-input-of-the-graph": (
        lambda values: {**values, "attention_mask": zeros(1, 4)},
        "no adapter input attention_mask",
    ),
    "a-without-b": (without_b, f"{MODULE} needs A and B of one rank up to 4096, got 1 of rank [4]"),
    "b-without-a": (without_a, f"{MODULE} needs A and B of one rank up to 4096, got 1 of rank [4]"),
    "two-ranks": (replaced("lora_A", zeros(64, 3)), f"{MODULE} needs A and B of one rank up to 4096, got 2 of rank [3, 4]"),
    "a-transposed": (
        replaced("lora_A", zeros(4, 64)),
        f"{MODULE}.lora_A.weight is [4, 64]; the graph expects 64 x rank",
    ),
    "b-too-wide": (replaced("lora_B", zeros(4, 33)), f"{MODULE}.lora_B.weight is [4, 33]; the graph expects rank x 32"),
    "a-flat": (replaced("lora_A", zeros(256)), f"{MODULE}.lora_A.weight is [256]"),
    "a-stack": (replaced("lora_A", zeros(1, 64, 4)), f"{MODULE}.lora_A.weight is [1, 64, 4]"),
    "empty": (lambda values: {}, "the adapter has no modules"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_an_adapter_that_does_not_fit_the_graph_is_refused_by_what_is_wrong(
    tmp_path: Path, engine: Engine, values: Values, name: str
) -> None:
    change, message = MISFITS[name]
    path = write_file(tmp_path / "a.onnx_adapter", change(values), model_version(engine.base.fingerprint))
    with pytest.raises(AdapterMismatchError) as caught:
        engine.load_adapter(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_rank_larger_than_any_is_refused(tmp_path: Path, engine: Engine, values: Values) -> None:
    wide = {f"{MODULE}.lora_A.weight": zeros(64, 4097), f"{MODULE}.lora_B.weight": zeros(4097, 32)}
    path = write_file(tmp_path / "a", {**values, **wide}, model_version(engine.base.fingerprint))
    with pytest.raises(AdapterMismatchError, match=r"up to 4096, got 2 of rank \[4097\]"):
        engine.load_adapter(path)


def test_an_adapter_for_another_base_of_the_same_shapes_is_refused(tmp_path: Path, engine: Engine) -> None:
    other = save_pack(Variant(seed=4), tmp_path / "other")
    assert other.shape == engine.base.shape
    write_onnx_adapter(random_adapter(other), other.fingerprint, tmp_path / "a")
    with pytest.raises(AdapterMismatchError) as caught:
        engine.load_adapter(tmp_path / "a")
    assert f"made for base {other.fingerprint}, this base is {engine.base.fingerprint}" in str(caught.value)
    sidecar_of(tmp_path / "a").unlink()  # what is left are the bits in the file itself
    with pytest.raises(AdapterMismatchError) as caught:
        engine.load_adapter(tmp_path / "a")
    assert f"made for base {model_version(other.fingerprint):08x}" in str(caught.value)
    assert f"this base is {model_version(engine.base.fingerprint):08x}" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_its_name(
    tmp_path: Path, engine: Engine, values: Values, value: float
) -> None:
    name = f"{MODULE}.lora_B.weight"
    values[name] = values[name].copy()
    values[name][1, 2] = value
    path = write_file(tmp_path / "a", values, model_version(engine.base.fingerprint))
    with pytest.raises(AdapterError, match=r"v_proj\.lora_B\.weight holds NaN or infinity"):
        engine.load_adapter(path)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_values_of_another_dtype_are_refused(
    tmp_path: Path, engine: Engine, values: Values, dtype: type[np.generic]
) -> None:
    values[f"{MODULE}.lora_A.weight"] = values[f"{MODULE}.lora_A.weight"].astype(dtype)
    path = write_file(tmp_path / "a", values, model_version(engine.base.fingerprint))
    with pytest.raises(AdapterError, match=rf"lora_A\.weight is {np.dtype(dtype)}; expected float32"):
        engine.load_adapter(path)


def test_a_truncated_file_is_refused_or_lacks_only_padding(tmp_path: Path, engine: Engine) -> None:
    version = model_version(engine.base.fingerprint)
    small = {f"{MODULE}.lora_A.weight": zeros(64, 1) + 1, f"{MODULE}.lora_B.weight": zeros(1, 32) + 2}
    data = write_file(tmp_path / "whole", small, version).read_bytes()
    path = tmp_path / "cut"
    refused = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            adapter = read(path)
        except AdapterError as error:
            assert "not a file of ONNX Runtime's adapter format" in str(error)
            refused += 1
        else:
            assert all(np.array_equal(adapter.values[name], value) for name, value in small.items())
    assert refused > len(data) - 16


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 4096, b"PK\x03\x04" + b"\xff" * 500])
def test_a_file_that_is_no_adapter_is_refused(tmp_path: Path, engine: Engine, content: bytes) -> None:
    path = tmp_path / "a.onnx_adapter"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"a\.onnx_adapter: not a file of ONNX Runtime's adapter format"):
        engine.load_adapter(path)


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(AdapterError, match=r"my\.onnx_adapter: no such file; make one with: fedlora export-adapter"):
        engine.load_adapter(tmp_path / "my.onnx_adapter")
    with pytest.raises(
        AdapterError, match=r"nowhere: no such file; expected a PEFT directory .*fedlora export-adapter"
    ):
        engine.load_adapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match=r"adapter_config\.json: .*; expected a PEFT directory with adapter_config"):
        engine.load_adapter(tmp_path)  # a directory
    (tmp_path / "mine").mkdir()
    with pytest.raises(AdapterError, match=r"a file of a PEFT directory; name the directory: .*/mine$"):
        engine.load_adapter(write_file(tmp_path / "mine" / "adapter_model.safetensors", {}, 0))


@pytest.mark.parametrize("version", [0, 1])
def test_a_file_of_another_tool_is_taken_where_the_caller_says_so_and_it_fits(
    tmp_path: Path, engine: Engine, values: Values, version: int
) -> None:
    path = write_file(tmp_path / "a", values, version)
    with pytest.raises(AdapterMismatchError, match=r"names no base \(model version [01]\), as files of other tools do"):
        engine.load_adapter(path)
    assert engine.load_adapter(path, allow_unnamed_base=True).inputs.keys() == values.keys()
    write_file(path, {**values, "other": zeros(1, 1)}, version)
    with pytest.raises(AdapterMismatchError, match="no adapter input other"):
        engine.load_adapter(path, allow_unnamed_base=True)
    write_file(path, values, 2)  # names a base, and not this one
    with pytest.raises(AdapterMismatchError, match="made for base 00000002"):
        engine.load_adapter(path, allow_unnamed_base=True)


def test_what_is_loaded_brings_its_manifest(tmp_path: Path, engine: Engine) -> None:
    adapter = random_adapter(engine.base, ALL_RANKS)
    write_onnx_adapter(adapter, engine.base.fingerprint, tmp_path / "a", source="round 3")
    manifest = load_adapter_file(
        tmp_path / "a",
        base_fingerprint=engine.base.fingerprint,
        inputs=graph_inputs(engine.base.model, "compat"),
    ).manifest
    assert manifest is not None
    assert (manifest.base, manifest.source) == (engine.base.fingerprint, "round 3")
    assert manifest.ranks == {module: pair.rank for module, pair in adapter.pairs.items()}
