"""Opening a base pack: what is sound opens, and every damage is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import (
    BasePack,
    file_digest,
    find_pack,
    fingerprint_of,
    open_pack,
    read_manifest,
    tensor_shapes,
)
from fedlora.base.packing import make_pack
from fedlora.errors import PackError
from fedlora.files.tensor_file import TensorFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny.checkpoints import llama_config, tiny_quantization, write_checkpoint

FILES = ["base.json", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def copy(tmp_path: Path, pack: BasePack) -> Path:
    """A copy of the shared pack to damage."""
    return Path(shutil.copytree(pack.directory, tmp_path / "copy"))


def _reseal(directory: Path, edit: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Write base.json as one would who forges it: digests and fingerprint all fit."""
    manifest = json.loads((directory / "base.json").read_text())
    manifest["files"] = {name: file_digest(directory / name) for name in manifest["files"]}
    edit(manifest)
    manifest["fingerprint"] = fingerprint_of(manifest)
    (directory / "base.json").write_text(json.dumps(manifest))


def test_a_pack_that_was_moved_opens_to_the_same_fingerprint_and_weights(copy: Path, pack: BasePack) -> None:
    moved = open_pack(copy)
    assert moved.fingerprint == pack.fingerprint
    assert moved.shape == pack.shape
    assert moved.source == "tiny-llama"
    for module in pack.shape.linear_modules():
        np.testing.assert_array_equal(moved.matrix(module).qweight, pack.matrix(module).qweight)


def test_a_file_that_others_put_into_the_pack_is_not_part_of_it(copy: Path, pack: BasePack) -> None:
    (copy / "decoder.onnx").write_bytes(b"a graph")
    assert open_pack(copy).fingerprint == pack.fingerprint


def test_a_pack_that_does_not_tell_how_its_scales_were_found_is_the_same_base(copy: Path, pack: BasePack) -> None:
    manifest = json.loads((copy / "base.json").read_text())
    assert manifest.pop("scales") == "mse"
    (copy / "base.json").write_text(json.dumps(manifest))
    assert open_pack(copy).fingerprint == pack.fingerprint
    assert open_pack(copy).scales is None


def test_the_fingerprint_is_indifferent_to_how_base_json_is_laid_out(copy: Path, pack: BasePack) -> None:
    manifest = json.loads((copy / "base.json").read_text())
    (copy / "base.json").write_text(json.dumps(dict(reversed(manifest.items()))))
    assert open_pack(copy).fingerprint == pack.fingerprint


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_tensor_but_the_zeros_lies_at_a_multiple_of_its_item(pack: BasePack, bits: int, symmetric: bool) -> None:
    shapes = tensor_shapes(pack.shape, tiny_quantization(bits=bits, symmetric=symmetric))
    begin = 0
    for dtype, shape in shapes.values():
        assert begin % (4 if dtype == "F32" else 1) == 0
        begin += int(np.prod(shape)) * (4 if dtype == "F32" else 1)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.37, 0.99])
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(copy: Path, name: str, where: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(len(content) * where)] ^= 0x40
    (copy / name).write_bytes(content)
    with pytest.raises(PackError) as caught:
        open_pack(copy)
    assert str(caught.value).startswith(f"{copy / name}: ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255) | st.sampled_from(list(b' \n0123456789"{},:')))
def test_base_json_with_one_byte_changed_says_the_same_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, pack: BasePack, position: int, value: int
) -> None:
    original = (pack.directory / "base.json").read_bytes()
    content = bytearray(original)
    content[position % len(content)] = value
    directory = tmp_path_factory.mktemp("edited")
    (directory / "base.json").write_bytes(content)
    try:
        manifest = read_manifest(directory)
    except PackError as error:
        assert str(directory / "base.json") in str(error)
    else:
        # The source is for people; everything else is under the fingerprint.
        assert {**manifest, "source": ""} == {**json.loads(original), "source": ""}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(PackError, match=name):
        open_pack(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-5])
    with pytest.raises(PackError, match=rf"{name}: "):
        open_pack(copy)


def test_base_json_edited_by_hand_says_that_it_was_changed_after_packing(copy: Path) -> None:
    manifest = json.loads((copy / "base.json").read_text())
    manifest["quantization"]["bits"] = 8
    (copy / "base.json").write_text(json.dumps(manifest))
    with pytest.raises(
        PackError, match=r"base.json: fingerprint .* the file was changed after packing: pack the model"
    ):
        open_pack(copy)


def test_a_damaged_file_tells_to_copy_the_pack_again(copy: Path) -> None:
    with (copy / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(PackError, match=r"tokenizer.json: sha256 is .*, base.json says .*: copy the pack again"):
        open_pack(copy)


@pytest.mark.parametrize("change", ["extra", "missing", "other shape", "other dtype"])
def test_a_weights_file_with_other_tensors_than_the_config_implies_is_refused(copy: Path, change: str) -> None:
    file = TensorFile(copy / "model.safetensors")
    raw = copy / "model.safetensors"
    content = raw.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = "model.norm.weight"  # the last in the file
    assert list(file.entries)[-1] == name
    begin, end = header[name]["data_offsets"]
    if change == "extra":
        header["stowaway"] = {"dtype": "U8", "shape": [0], "data_offsets": [end, end]}
        name = "stowaway"
    elif change == "missing":
        del header[name]
        data = data[:begin]
    elif change == "other shape":
        header[name]["shape"] = [1, 32]
    else:
        header[name] |= {"dtype": "U8", "shape": [128]}
    text = json.dumps(header).encode()
    raw.write_bytes(len(text).to_bytes(8, "little") + text + data)
    _reseal(copy)
    with pytest.raises(PackError) as caught:
        open_pack(copy)
    assert str(caught.value).startswith(f"{raw}: {name}: expected ")
    assert "pack the model again" in str(caught.value)


def _config(copy: Path, content: object) -> None:
    (copy / "config.json").write_text(json.dumps(content))
    _reseal(copy)


def _file(name: str, content: bytes, *, reseal: bool = False) -> Callable[[Path], None]:
    def write(copy: Path) -> None:
        (copy / name).write_bytes(content)
        if reseal:
            _reseal(copy)

    return write


FORGED: dict[str, Callable[[Path], None]] = {
    "another config": lambda copy: _config(copy, llama_config(num_hidden_layers=3)),
    "a foreign architecture": lambda copy: _config(copy, llama_config(architectures=["GPT2LMHeadModel"])),
    "a config that is a list": lambda copy: _config(copy, []),
    "a config that is not JSON": _file("config.json", b"{", reseal=True),
    "weights that are no tensors": _file("model.safetensors", b"x", reseal=True),
    "another quantization": lambda copy: _reseal(copy, lambda m: m["quantization"].update(bits=8)),
    "a quantization out of range": lambda copy: _reseal(copy, lambda m: m["quantization"].update(bits=5)),
    "an unknown quantization": lambda copy: _reseal(copy, lambda m: m["quantization"].update(method="gptq")),
    "a quantization that is null": lambda copy: _reseal(copy, lambda m: m.update(quantization=None)),
    "no quantization": lambda copy: _reseal(copy, lambda m: m.pop("quantization")),
    "no source": lambda copy: _reseal(copy, lambda m: m.pop("source")),
    "no files": lambda copy: _reseal(copy, lambda m: m.pop("files")),
    "files that are a list": lambda copy: _reseal(copy, lambda m: m.update(files=list(m["files"]))),
    "a file that is not listed": lambda copy: _reseal(copy, lambda m: m["files"].pop("tokenizer.json")),
    "a file of elsewhere": lambda copy: _reseal(copy, lambda m: m["files"].update({"../secret": "0" * 64})),
    "the directory above": lambda copy: _reseal(copy, lambda m: m["files"].update({"..": "0" * 64})),
    "a name that no file can have": lambda copy: _reseal(copy, lambda m: m["files"].update({"a\0b": "0" * 64})),
    "another format": lambda copy: _reseal(copy, lambda m: m.update(format="gguf")),
    "a later version": lambda copy: _reseal(copy, lambda m: m.update(version=3)),
    "not JSON": _file("base.json", b"{"),
    "a list": _file("base.json", b"[]"),
    "not text": _file("base.json", b"\xff\xfe"),
    "an abyss of brackets": _file("base.json", b"[" * 100_000),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_pack_that_was_forged_is_refused_by_its_directory(copy: Path, what: str) -> None:
    FORGED[what](copy)
    with pytest.raises(PackError) as caught:
        open_pack(copy)
    assert str(copy) in str(caught.value)


def test_a_later_version_says_which_versions_are_read(copy: Path) -> None:
    _reseal(copy, lambda manifest: manifest.update(version=3))
    with pytest.raises(PackError, match="version 3 of the format; this fedlora reads 2"):
        open_pack(copy)


@pytest.mark.parametrize("path", ["gone", "."])
def test_a_directory_that_is_no_pack_tells_how_to_make_one(tmp_path: Path, path: str) -> None:
    with pytest.raises(PackError, match=r"no base.json: not a base pack; make one with: fedlora pack SOURCE -o "):
        open_pack(tmp_path / path)


def test_what_lies_where_a_pack_was_expected_is_said(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(PackError, match=rf"not a base pack, but a checkpoint; .* fedlora pack {checkpoint} -o "):
        open_pack(checkpoint)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(PackError, match="not a base pack, but a GGUF file"):
        open_pack(tmp_path / "m.gguf")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(PackError, match="not a base pack, but an adapter of PEFT"):
        open_pack(tmp_path / "a")


def test_the_name_nano_stands_for_the_pack_that_ships_with_fedlora() -> None:
    assert find_pack("nano").name == "nano"
    assert find_pack("nano").is_absolute()
    assert find_pack("./nano") == Path("nano")


def test_what_is_written_to_an_opened_packs_arrays_never_reaches_its_file(copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    opened = open_pack(copy)
    opened.matrix("model.layers.0.mlp.up_proj").qweight[:] = 0
    opened.norm("model.norm")[:] = 0
    assert (copy / "model.safetensors").read_bytes() == before


def test_bits_are_those_of_the_linear_weights_or_of_the_vocabulary(pack: BasePack) -> None:
    assert pack.bits("model.embed_tokens") == 8
    assert pack.bits("model.layers.0.mlp.up_proj") == 4
    assert pack.in_features("model.layers.0.mlp.down_proj") == 72


def test_the_real_checkpoint_packs_and_opens(tmp_path: Path, shared: Path) -> None:
    make_pack(str(shared / "models" / "stories260K"), tmp_path / "stories", tiny_quantization(bits=8))
    opened = open_pack(tmp_path / "stories")
    assert opened.shape.num_layers == 5
    assert opened.shape.vocab_size == 512


@pytest.mark.parametrize(
    ("ends", "expected"), [([5, 2], (2, 5)), (7, (2, 7)), (None, (2,)), ([2, "x", 10**9, -1, True], (2,))]
)
def test_a_text_ends_at_the_tokens_of_the_generation_config_too(
    tmp_path: Path, ends: object, expected: tuple[int, ...]
) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    make_pack(str(source), tmp_path / "pack", tiny_quantization())
    assert open_pack(tmp_path / "pack").shape.eos_token_ids == expected
