"""safetensors files, with the `safetensors` library as the oracle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fedlora.errors import TensorFileError
from fedlora.files.tensor_file import Dtype, TensorFile, TensorPlan, from_float32, read_rows, write_tensor_file
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

DTYPES: dict[Dtype, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}
FLOATS: list[Dtype] = ["F32", "F16", "BF16"]
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def _tensor(dtype: Dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == "U8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator).to(DTYPES[dtype])


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's own bits; BF16 as uint16."""
    bits: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return bits


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    names = {torch_dtype: name for name, torch_dtype in DTYPES.items()}
    plans = [
        TensorPlan(name=name, dtype=names[tensor.dtype], shape=tuple(tensor.shape)) for name, tensor in tensors.items()
    ]

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        yield _as_numpy(tensors[plan.name])

    write_tensor_file(path, plans, fill, metadata)


def _raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _mixed() -> dict[str, torch.Tensor]:
    shapes: list[tuple[int, ...]] = [(3, 5), (7,), (), (2, 0, 3), (4, 4, 2)]
    return {
        f"{dtype}.{i}": _tensor(dtype, shape, i)
        for dtype in DTYPES
        for i, shape in enumerate(shapes)
    }  # fmt: skip


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = _mixed()
    _write(tmp_path / "ours.safetensors", tensors, {"format": "pt", "note": "é"})
    read = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
    with safetensors.safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "é"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = _mixed() | {
        "F64": torch.randn(3, 2, dtype=torch.float64),
        "I64": torch.arange(5),
        "I32": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "I8": torch.tensor([-1, 1], dtype=torch.int8),
        "BOOL": torch.tensor([True, False, True]),
    }
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "theirs.safetensors")
    assert file.metadata == {"format": "pt"}
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert file.entries[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(file.array(name), _as_numpy(tensor), err_msg=name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_float32_is_the_value_that_torch_widens_to(tmp_path: Path, dtype: Dtype) -> None:
    tensor = _tensor(dtype, (9, 6))
    safetensors.torch.save_file({"x": tensor}, tmp_path / "x.safetensors")
    widened = TensorFile(tmp_path / "x.safetensors").float32("x")
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened, tensor.float().numpy())


@pytest.mark.parametrize("dtype", ["U8", "I64"])
def test_float32_of_a_tensor_that_holds_no_floats_is_refused(tmp_path: Path, dtype: str) -> None:
    tensor = torch.ones(3, dtype=torch.uint8 if dtype == "U8" else torch.int64)
    safetensors.torch.save_file({"x": tensor}, tmp_path / "x.safetensors")
    with pytest.raises(TensorFileError, match=f"x.safetensors: x has dtype {dtype}; expected F32, F16 or BF16"):
        TensorFile(tmp_path / "x.safetensors").float32("x")


@pytest.mark.parametrize("dtype", FLOATS)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
@example(bits=[0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 1])
def test_from_float32_rounds_every_float_as_torch_does(dtype: Dtype, bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    expected = torch.from_numpy(values).to(DTYPES[dtype])
    with np.errstate(over="ignore", invalid="ignore"):  # float16 overflows to infinity in both
        ours = from_float32(values, dtype)
    nan = np.isnan(values)
    np.testing.assert_array_equal(ours[~nan], _as_numpy(expected)[~nan])
    assert torch.isnan(torch.from_numpy(ours[nan]).view(DTYPES[dtype])).all()


def test_entries_tell_where_the_bytes_lie_in_the_file(tmp_path: Path) -> None:
    tensors = {"a": _tensor("F32", (2, 3)), "b": _tensor("U8", (5,))}
    path = tmp_path / "x.safetensors"
    _write(path, tensors)
    data = path.read_bytes()
    for name, entry in TensorFile(path).entries.items():
        assert data[entry.offset : entry.offset + entry.size_bytes] == _as_numpy(tensors[name]).tobytes()


def test_the_data_begins_at_a_multiple_of_64_bytes(tmp_path: Path) -> None:
    for length in range(1, 70):
        _write(tmp_path / "x.safetensors", {"n" * length: _tensor("F32", (4,))})
        assert TensorFile(tmp_path / "x.safetensors").entries["n" * length].offset % 64 == 0


def test_a_tensor_may_be_written_in_parts(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    plan = TensorPlan(name="x", dtype="F32", shape=(4, 3))
    write_tensor_file(tmp_path / "x", [plan], lambda _: (values[i : i + 1] for i in range(4)))
    np.testing.assert_array_equal(TensorFile(tmp_path / "x").array("x"), values)


def test_an_array_that_is_not_contiguous_is_written_in_its_own_order(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_tensor_file(tmp_path / "x", [TensorPlan(name="x", dtype="F32", shape=(3, 4))], lambda _: [values.T])
    np.testing.assert_array_equal(TensorFile(tmp_path / "x").array("x"), values.T)


@pytest.mark.parametrize("parts", [[], [np.zeros(3, np.float32)], [np.zeros(4, np.float64)]])
def test_bytes_that_differ_from_the_plan_are_our_own_bug(tmp_path: Path, parts: list[NDArray[Any]]) -> None:
    with pytest.raises(AssertionError, match="x: planned"):
        write_tensor_file(tmp_path / "x", [TensorPlan(name="x", dtype="F32", shape=(4,))], lambda _: parts)


def test_writing_to_an_array_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _write(path, {"x": _tensor("F32", (4,))})
    before = path.read_bytes()
    TensorFile(path).array("x")[:] = 7
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("start", "stop"), [(0, 6), (2, 5), (3, 3), (5, 6)])
def test_read_rows_gives_the_rows_of_the_mapped_tensor(tmp_path: Path, dtype: Dtype, start: int, stop: int) -> None:
    path = tmp_path / "x.safetensors"
    _write(path, {"before": _tensor("U8", (3,)), "x": _tensor(dtype, (6, 2, 3))})
    mapped = TensorFile(path)
    with path.open("rb") as file:
        rows = read_rows(file.fileno(), mapped.entries["x"], start, stop)
    np.testing.assert_array_equal(rows, mapped.float32("x")[start:stop])


def test_read_rows_of_a_file_that_shrank_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _write(path, {"x": _tensor("F32", (6, 2))})
    entry = TensorFile(path).entries["x"]
    path.write_bytes(path.read_bytes()[:-4])
    with path.open("rb") as file, pytest.raises(TensorFileError, match="x: expected 48 bytes, read 44"):
        read_rows(file.fileno(), entry, 0, 6)


X = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{nope", b"", "not a safetensors file"),
    "not UTF-8": (b'{"\xff\xfe":1}', b"", "not a safetensors file"),
    "UTF-16": (json.dumps({"__metadata__": {"a": "b"}}).encode("utf-16-le"), b"", "not a safetensors file"),
    "a list": ([1, 2], b"", "not a safetensors file"),
    "a name twice": (b'{"x":1,"x":2}', b"", "a name appears twice"),
    "an entry that is no object": ({"x": 5}, b"", "not a safetensors file"),
    "no dtype": ({"x": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, "dtype"),
    "an unknown dtype": ({"x": X | {"dtype": "F8"}}, b"\0" * 8, "x has dtype 'F8'; expected one of"),
    "a dtype that is a list": ({"x": X | {"dtype": ["F32"]}}, b"\0" * 8, "not a safetensors file"),
    "a negative size": ({"x": X | {"shape": [-2]}}, b"\0" * 8, "x: shape and offsets must be non-negative integers"),
    "a fractional size": ({"x": X | {"shape": [2.0]}}, b"\0" * 8, "non-negative integers"),
    "a boolean size": ({"x": X | {"shape": [True, 2]}}, b"\0" * 8, "non-negative integers"),
    "a giant size": ({"x": X | {"shape": [1 << 62, 4]}}, b"\0" * 8, "non-negative integers"),
    "sizes whose product is giant": ({"x": X | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 8, "2^48 elements"),
    "three offsets": ({"x": X | {"data_offsets": [0, 8, 9]}}, b"\0" * 8, "not a safetensors file"),
    "offsets the wrong way round": ({"x": X | {"data_offsets": [8, 0]}}, b"\0" * 8, "its offsets span -8"),
    "offsets of another size": ({"x": X | {"data_offsets": [0, 12]}}, b"\0" * 12, "takes 8 bytes, its offsets span 12"),
    "a hole": ({"x": X | {"data_offsets": [4, 12]}}, b"\0" * 12, "x begins at byte"),
    "an overlap": ({"x": X, "y": X | {"data_offsets": [4, 12]}}, b"\0" * 12, "y begins at byte"),
    "two tensors in one place": ({"x": X, "y": X}, b"\0" * 8, "begins at byte"),
    "data missing": ({"x": X}, b"\0" * 7, "truncated or extended: expected"),
    "data too many": ({"x": X}, b"\0" * 9, "truncated or extended: expected"),
    "metadata that is no text": ({"__metadata__": {"a": 1}, "x": X}, b"\0" * 8, "__metadata__ must map"),
    "metadata that is a list": ({"__metadata__": [], "x": X}, b"\0" * 8, "not a safetensors file"),
    "metadata that is null": ({"__metadata__": None, "x": X}, b"\0" * 8, "not a safetensors file"),
    "an abyss of brackets": (b"[" * 200_000, b"", "not a safetensors file"),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_a_file_that_is_not_sound_is_refused_by_its_name(tmp_path: Path, what: str) -> None:
    header, data, message = BAD_HEADERS[what]
    path = _raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(TensorFileError) as caught:
        TensorFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_header_larger_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = _raw(tmp_path / "x", b"{}" + b" " * 2000)
    assert TensorFile(path, max_header_bytes=2002).entries == {}
    with pytest.raises(TensorFileError, match="header of 2002 bytes; at most 2001 are read"):
        TensorFile(path, max_header_bytes=2001)


def test_a_large_header_of_millions_of_other_names_is_refused_before_it_is_read(tmp_path: Path) -> None:
    metadata = ",".join(f'"{number:x}":""' for number in range(400_000))
    path = _raw(tmp_path / "x", f'{{"__metadata__":{{{metadata}}}}}'.encode())
    with pytest.raises(TensorFileError, match="header of 400001 names; at most 65936 are read"):
        TensorFile(path, max_header_bytes=1 << 26, max_tensors=100)
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    tensors = ",".join(f'"a_tensor_with_a_name_{number}":{entry}' for number in range(20_000))
    path = _raw(tmp_path / "y", f"{{{tensors}}}".encode())
    assert len(TensorFile(path, max_header_bytes=1 << 26, max_tensors=20_000).entries) == 20_000


def test_more_tensors_than_the_limit_are_refused(tmp_path: Path) -> None:
    header = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(5)}
    assert len(TensorFile(_raw(tmp_path / "x", header), max_tensors=5).entries) == 5
    with pytest.raises(TensorFileError, match="5 tensors; at most 4 are read"):
        TensorFile(tmp_path / "x", max_tensors=4)


@pytest.mark.parametrize("size", range(10))
def test_a_file_shorter_than_any_header_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"\0" * size)
    with pytest.raises(TensorFileError, match="x: truncated"):
        TensorFile(tmp_path / "x")


def test_a_file_that_is_not_there_and_a_directory_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match="gone: cannot be read: No such file"):
        TensorFile(tmp_path / "gone")
    with pytest.raises(TensorFileError, match="cannot be read: Is a directory"):
        TensorFile(tmp_path)


def _read_everything(path: Path) -> None:
    """Everything that a reader may do with a file that was accepted."""
    file = TensorFile(path)
    for name, entry in file.entries.items():
        array = file.array(name)
        assert array.shape == entry.shape
        if entry.dtype in FLOATS:
            with np.errstate(all="ignore"):
                file.float32(name)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "x"
    _write(path, {"a": _tensor("F32", (2, 3)), "b": _tensor("BF16", (4,))}, {"format": "pt"})
    return path.read_bytes()


@QUIET
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_and_nothing_else(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of the file is its header; most headers that still parse come from printable changes.
        byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0129[]{}",: -')))
        content[data.draw(st.integers(0, len(content) - 1))] = byte
    (tmp_path / "x").write_bytes(content)
    try:
        _read_everything(tmp_path / "x")
    except TensorFileError as error:
        assert str(tmp_path / "x") in str(error)


@QUIET
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    for candidate in (content, len(content).to_bytes(8, "little") + content):
        (tmp_path / "x").write_bytes(candidate)
        try:
            _read_everything(tmp_path / "x")
        except TensorFileError as error:
            assert str(tmp_path / "x") in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL"]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 16), st.integers(0, 16)) | JSON,
    },
)


@QUIET
@given(
    header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRY | JSON, max_size=3),
    data=st.binary(max_size=16),
)
def test_an_arbitrary_header_is_read_or_refused_and_nothing_else(
    tmp_path: Path, header: dict[str, object], data: bytes
) -> None:
    try:
        _read_everything(_raw(tmp_path / "x", header, data))
    except TensorFileError as error:
        assert str(tmp_path / "x") in str(error)


@QUIET
@given(cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, sound: bytes, cut: int) -> None:
    (tmp_path / "x").write_bytes(sound[: cut % len(sound)])
    with pytest.raises(TensorFileError, match="truncated"):
        TensorFile(tmp_path / "x")


def test_what_the_library_refuses_and_we_accept_is_nothing(tmp_path: Path, sound: bytes) -> None:
    generator = np.random.default_rng(0)
    header_end = 8 + int.from_bytes(sound[:8], "little")
    accepted = 0
    for _ in range(600):
        content = bytearray(sound)
        content[generator.integers(8, header_end)] = generator.choice(list(b'0123456789[]{}",: ABF'))
        (tmp_path / "x").write_bytes(content)
        try:
            TensorFile(tmp_path / "x")
        except TensorFileError:
            continue
        accepted += 1
        # Raises SafetensorError where the library refuses.
        safetensors.deserialize(bytes(content))  # type: ignore[no-untyped-call]
    assert accepted > 20


def test_a_file_that_is_cut_short_after_it_was_read_into_memory_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensor = _tensor("F32", (64, 1024))
    safetensors.torch.save_file({"a": tensor}, path)
    file = TensorFile(path, in_memory=True)
    with path.open("r+b") as opened:
        opened.truncate(1000)
    np.testing.assert_array_equal(file.float32("a"), tensor.numpy())  # of a mapped file it would end the process


def test_a_file_that_is_cut_short_between_its_header_and_its_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": _tensor("F32", (64, 1024))}, path)
    monkeypatch.setattr(np, "fromfile", lambda path, dtype: np.zeros(1000, dtype))
    with pytest.raises(TensorFileError, match="changed while it was read"):
        TensorFile(path, in_memory=True)
