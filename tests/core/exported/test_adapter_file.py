"""Files of ONNX Runtime's adapter format, with ONNX Runtime itself as the writer and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import onnxruntime as ort
import pytest
from fedlora.errors import AdapterError
from fedlora.exported.adapter_file import AdapterFile, parse_adapter_file
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Values = dict[str, NDArray[Any]]


def written(path: Path, values: Values, *, adapter_version: int = 3, model_version: int = 5) -> bytes:
    """A file as ONNX Runtime writes it."""
    content = ort.AdapterFormat()
    content.set_adapter_version(adapter_version)
    content.set_model_version(model_version)
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    content.export_adapter(str(path))
    return path.read_bytes()


def parsed(data: bytes) -> AdapterFile:
    return parse_adapter_file(data, "here")


@pytest.fixture
def sound(tmp_path: Path) -> bytes:
    return written(
        tmp_path / "sound", {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones((2, 4), np.float32)}
    )


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**31 - 1),
)
def test_what_onnx_runtime_writes_is_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, int]], version: int
) -> None:
    generator = np.random.default_rng(version)
    values = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    file = parsed(written(tmp_path_factory.mktemp("file") / "a", values, adapter_version=7, model_version=version))
    assert (file.adapter_version, file.model_version) == (7, version)
    assert file.values.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(file.values[name], value)


def test_the_values_cannot_be_changed_and_outlive_the_file(tmp_path: Path, sound: bytes) -> None:
    value = parsed(sound).values["a"]
    (tmp_path / "sound").write_bytes(b"")
    with pytest.raises(ValueError, match="read-only"):
        value[0, 0] = 7
    assert value[2, 1] == 5


def number(place: Callable[[bytes], int], value: int, kind: str = "<i4") -> Callable[[bytes], bytes]:
    """Put a number in its place."""

    def change(data: bytes) -> bytes:
        raw, begin = np.array(value, kind).tobytes(), place(data)
        return data[:begin] + raw + data[begin + len(raw) :]

    return change


def dims_of_a(data: bytes) -> int:
    return data.index(np.array([3, 2], "<i8").tobytes())


def format_version(data: bytes) -> int:
    """The number 1 of the root table, which stands beside the adapter's version 3 and the model's 5."""
    for order in ([1, 3, 5], [5, 3, 1]):
        place = data.find(np.array(order, "<i4").tobytes())
        if place >= 0:
            return place + 4 * order.index(1)
    raise AssertionError("the root table looks different")


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "outside the buffer|lacks the letters"),
    "other letters": (lambda data: data[:4] + b"ORTM" + data[8:], "lacks the letters TORT"),
    "a root beyond the end": (number(lambda data: 0, 2**31 - 1), "outside the buffer, or not aligned"),
    "a root that is not aligned": (number(lambda data: 0, 21), "outside the buffer, or not aligned"),
    "a size too large": (number(dims_of_a, 4, "<i8"), r"a is \[4, 2\] of float32, and holds 24 bytes"),
    "a size that overflows": (number(dims_of_a, 2**62, "<i8"), r"a is \[4611686018427387904, 2\] of float32"),
    "a negative size": (number(dims_of_a, -3, "<i8"), r"a is \[-3, 2\] of float32, and holds 24 bytes"),
    "another version": (number(format_version, 2), "version 2 of the format; expected 1"),
    "a number missing": (lambda data: data[:-60], "not a file of ONNX Runtime's adapter format"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_by_what_is_wrong(sound: bytes, name: str) -> None:
    damage, words = DAMAGES[name]
    with pytest.raises(AdapterError, match=words) as caught:
        parsed(damage(sound))
    assert str(caught.value).startswith("here: not a file of ONNX Runtime's adapter format: ")


def test_two_parameters_of_one_name_are_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "a", {"name1": np.ones((1, 1), np.float32), "name2": np.ones((1, 1), np.float32)})
    with pytest.raises(AdapterError, match="two parameters are named name1"):
        parsed(data.replace(b"name2", b"name1"))


def test_parameters_that_share_their_bytes_are_refused() -> None:
    builder = flatbuffers.Builder(0)
    raw = builder.CreateByteVector(np.zeros(1024, np.float32).tobytes())
    builder.StartVector(8, 2, 8)
    builder.PrependInt64(2)
    builder.PrependInt64(512)
    dims = builder.EndVector()
    tables = []
    for name in [builder.CreateString(f"p{number}") for number in range(3)]:
        builder.StartObject(4)
        for field, offset in ((0, name), (1, dims), (3, raw)):
            builder.PrependUOffsetTRelativeSlot(field, offset, 0)
        builder.PrependInt32Slot(2, 1, 0)
        tables.append(builder.EndObject())
    builder.StartVector(4, len(tables), 4)
    for table in tables:
        builder.PrependUOffsetTRelative(table)
    parameters = builder.EndVector()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, 1, 0)
    builder.PrependUOffsetTRelativeSlot(3, parameters, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TORT")
    with pytest.raises(AdapterError, match="its parameters hold more bytes than the file"):
        parsed(bytes(builder.Output()))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_values_that_are_no_float32_are_refused_by_their_type(tmp_path: Path, dtype: type[np.generic]) -> None:
    with pytest.raises(AdapterError, match=f"^here: x is {np.dtype(dtype)}; expected float32$"):
        parsed(written(tmp_path / "a", {"x": np.ones((2, 2), dtype)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(AdapterError, match=r"^here: x holds NaN or infinity"):
        parsed(written(tmp_path / "a", {"x": np.array([[1, value]], np.float32)}))


def test_a_file_without_parameters_is_read_as_empty(tmp_path: Path) -> None:
    assert parsed(written(tmp_path / "a", {})).values == {}


def test_the_published_example_is_read(shared: Path) -> None:
    file = parsed((shared / "fixtures" / "ort-lora" / "adapter.orl").read_bytes())
    assert {name: value.ravel().tolist() for name, value in file.values.items()} == {
        "lora_param_a": [3, 4, 5, 6],
        "lora_param_b": [7, 8, 9, 10],
    }
