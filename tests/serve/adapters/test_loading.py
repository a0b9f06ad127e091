"""Reading an adapter from a PEFT directory, or from an adapter file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, AdapterStoreFullError
from fedlora.exported.inputs import digest_of, input_values
from fedlora.exported.sidecar import sidecar_of
from fedlora.files.tensor_file import Dtype
from fedlora.lora.adapter import Adapter
from fedlora.peft.directory import WEIGHTS, PeftDirectory, write_peft
from fedlora.row_lora.layout import AdapterLayout, LayoutDtype, adapter_layout
from fedlora_export.adapter_export import export_peft, write_onnx_adapter
from fedlora_serve.adapters import loading
from fedlora_serve.adapters.loading import LoadedAdapter, load_adapter

from tests.serve.adapters.fake_source import inputs_of
from tests.tiny.adapters import ALL_RANKS, LORAS, changed, random_adapter
from tests.tiny.encoders import save_encoder_pack
from tests.tiny.families import family_pack
from tests.tiny.llamas import Variant, save_pack


def save(adapter: Adapter, directory: Path, fingerprint: str | None, dtype: Dtype = "F32") -> Path:
    write_peft(directory, PeftDirectory(adapter=adapter, base_fingerprint=fingerprint, dtype=dtype), base_name="theirs")
    return directory


@pytest.fixture
def saved(base: BasePack, tmp_path: Path) -> Path:
    """A PEFT directory for the base."""
    return save(random_adapter(base, ALL_RANKS), tmp_path / "adapter", base.fingerprint)


@pytest.fixture
def exported(base: BasePack, saved: Path, tmp_path: Path) -> Path:
    """The adapter file that was made of it."""
    export_peft(saved, tmp_path / "a.onnx_adapter", base)
    return tmp_path / "a.onnx_adapter"


def assert_holds(content: LoadedAdapter, adapter: Adapter) -> None:
    expected = input_values(adapter)
    assert inputs_of(content.values).keys() == expected.keys()
    assert all(np.array_equal(inputs_of(content.values)[name], expected[name]) for name in expected)
    assert content.digest == digest_of(expected)
    assert content.rank == max(pair.rank for pair in adapter.pairs.values())
    assert content.size_bytes == sum(value.nbytes for value in expected.values())


@pytest.mark.parametrize("lora", LORAS)
def test_a_directory_and_the_file_made_of_it_are_one_content(base: BasePack, tmp_path: Path, lora: str) -> None:
    adapter = random_adapter(base, LORAS[lora])
    directory = save(adapter, tmp_path / "adapter", base.fingerprint)
    export_peft(directory, tmp_path / "a.onnx_adapter")
    for path in (directory, tmp_path / "a.onnx_adapter"):
        assert_holds(load_adapter(path, base), adapter)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_factors_that_are_stored_in_half_precision_are_one_content_too(
    base: BasePack, tmp_path: Path, dtype: Dtype
) -> None:
    directory = save(random_adapter(base), tmp_path / "adapter", base.fingerprint, dtype)
    export_peft(directory, tmp_path / "a.onnx_adapter")
    assert load_adapter(directory, base).digest == load_adapter(tmp_path / "a.onnx_adapter", base).digest


def test_an_adapter_of_an_encoder_is_read(tmp_path: Path) -> None:
    encoder = save_encoder_pack("bare bert", tmp_path / "pack")
    adapter = random_adapter(encoder)
    directory = save(adapter, tmp_path / "adapter", encoder.fingerprint)
    export_peft(directory, tmp_path / "a.onnx_adapter")
    for path in (directory, tmp_path / "a.onnx_adapter"):
        assert_holds(load_adapter(path, encoder), adapter)


def test_an_adapter_of_a_family_that_joins_its_modules_is_read(tmp_path: Path) -> None:
    base = family_pack("phi3")
    adapter = random_adapter(base)
    directory = save(adapter, tmp_path / "adapter", base.fingerprint)
    export_peft(directory, tmp_path / "a.onnx_adapter")
    for path in (directory, tmp_path / "a.onnx_adapter"):
        assert_holds(load_adapter(path, base), adapter)


def test_values_are_copies_that_nobody_can_change(base: BasePack, saved: Path, exported: Path) -> None:
    for path in (saved, exported):
        content = load_adapter(path, base)
        (path / WEIGHTS if path.is_dir() else path).write_bytes(b"")  # a mapped file would end the process below
        values = inputs_of(content.values)
        assert digest_of(values) == content.digest
        for value in values.values():
            assert value.dtype == np.float32
            assert value.flags.c_contiguous
            assert value.flags.owndata
            assert value.flags.aligned
            with pytest.raises(ValueError, match="read-only"):
                value[0, 0] = 1
        with pytest.raises(TypeError):
            values["more"] = value  # type: ignore[index]


def test_a_foreign_fingerprint_is_refused_whatever_the_kind(base: BasePack, tmp_path: Path) -> None:
    other = save_pack(Variant(seed=4), tmp_path / "other")  # of the same shapes
    directory = save(random_adapter(other), tmp_path / "adapter", other.fingerprint)
    export_peft(directory, tmp_path / "a.onnx_adapter")
    for path in (directory, tmp_path / "a.onnx_adapter"):
        with pytest.raises(AdapterMismatchError) as caught:
            load_adapter(path, base)
        assert other.fingerprint[:16] in str(caught.value)
        assert base.fingerprint[:16] in str(caught.value)


def test_a_directory_that_records_no_base_is_taken_where_it_fits(base: BasePack, tmp_path: Path) -> None:
    adapter = random_adapter(base)
    assert_holds(load_adapter(save(adapter, tmp_path / "adapter", None), base), adapter)
    other = random_adapter(save_pack(Variant(inner=96), tmp_path / "other"))
    with pytest.raises(AdapterMismatchError, match=r"\(made for theirs\): .* updates a weight"):
        load_adapter(save(other, tmp_path / "misfit", None), base)


def test_a_file_of_another_tool_is_taken_where_the_caller_says_so(base: BasePack, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(random_adapter(base), "0" * 64, path)  # which reads as version 0: it names no base
    sidecar_of(path).unlink()
    with pytest.raises(AdapterMismatchError, match="names no base"):
        load_adapter(path, base)
    assert_holds(load_adapter(path, base, allow_unnamed_base=True), random_adapter(base))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_file_of_profile_fast_is_refused_with_the_command_that_helps(
    base: BasePack, saved: Path, tmp_path: Path, has_manifest: bool
) -> None:
    path = tmp_path / "fast.onnx_adapter"
    export_peft(saved, path, base, profile="fast")
    if not has_manifest:
        sidecar_of(path).unlink()
    with pytest.raises(AdapterMismatchError, match=r"profile fast.*with: fedlora export-adapter --profile compat"):
        load_adapter(path, base)


def test_what_is_not_there_or_no_adapter_is_refused(base: BasePack, tmp_path: Path, exported: Path) -> None:
    with pytest.raises(AdapterError, match=r"nowhere: no such file"):
        load_adapter(tmp_path / "nowhere", base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"adapter_config\.json: cannot be read"):
        load_adapter(tmp_path / "empty", base)
    exported.write_bytes(exported.read_bytes()[:-1] + b"\xff")
    with pytest.raises(AdapterError, match="the file is damaged"):
        load_adapter(exported, base)


def test_a_file_that_may_not_be_read_is_refused(
    base: BasePack, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, max_bytes: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fedlora.exported.adapter_file.read_plain", forbidden)
    with pytest.raises(AdapterError, match=r"a\.onnx_adapter: cannot be read: Permission denied"):
        load_adapter(exported, base)


def test_an_adapter_larger_than_it_may_be_is_refused(
    base: BasePack, saved: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = load_adapter(saved, base).size_bytes
    for path in (saved, exported):
        assert load_adapter(path, base, max_bytes=size).size_bytes == size
        with pytest.raises(AdapterStoreFullError, match=rf"{size} bytes or more, .* may have {size - 1};"):
            load_adapter(path, base, max_bytes=size - 1)
    # What is far too large is not even read.
    monkeypatch.setattr(loading, "_OVERHEAD_BYTES", 0)
    monkeypatch.setattr(loading, "_beside_bytes", lambda base: 0)
    monkeypatch.setattr(loading, "_of_directory", None)
    with pytest.raises(AdapterStoreFullError):
        load_adapter(saved, base, max_bytes=10)


def test_a_directory_that_is_replaced_while_it_is_read_is_refused(
    base: BasePack, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading._of_directory
    other = save(random_adapter(base, ALL_RANKS, seed=3), tmp_path / "other", base.fingerprint)

    def read_and_replace(directory: Path, base: BasePack, max_bytes: int) -> object:
        values = read(directory, base, max_bytes)
        (other / WEIGHTS).replace(directory / WEIGHTS)
        return values

    monkeypatch.setattr(loading, "_of_directory", read_and_replace)
    with pytest.raises(AdapterError, match="changed while it was read; load it again"):
        load_adapter(saved, base)


@pytest.mark.parametrize("layout", ["float32", "float16"])
def test_an_adapter_is_laid_out_for_the_kernel_from_a_directory_as_from_a_file(
    base: BasePack, saved: Path, exported: Path, layout: LayoutDtype
) -> None:
    expected = adapter_layout(input_values(random_adapter(base, ALL_RANKS)), base.model.linear_modules(), layout)
    for path in (saved, exported):
        content = load_adapter(path, base, layout=layout)
        assert isinstance(content.values, AdapterLayout)
        assert np.array_equal(content.values.values, expected.values)
        assert content.digest == load_adapter(path, base).digest
        assert content.size_bytes == expected.size_bytes
        with pytest.raises(AdapterStoreFullError):
            load_adapter(path, base, layout=layout, max_bytes=expected.size_bytes - 1)


@pytest.mark.parametrize(("value", "words"), [(1e5, "beyond float16's 65504"), (3e38, "not finite in float32")])
def test_values_too_large_for_a_number_are_refused_with_the_path(
    base: BasePack, tmp_path: Path, value: float, words: str
) -> None:
    adapter = changed(random_adapter(base), lambda _, a, b: (a, np.full_like(b, value)))  # scaled by 2
    directory = save(adapter, tmp_path / "adapter", base.fingerprint)
    with pytest.raises(AdapterError, match=rf"adapter: .*{words}"):
        load_adapter(directory, base, layout="float16")
