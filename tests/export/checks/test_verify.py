"""`fedlora verify`: a folder that was exported passes, and one in which any one file is not its own does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.base.pack import open_pack
from fedlora.base.packing import make_pack
from fedlora.errors import AdapterError, FedloraError, GraphError, PackError
from fedlora.exported.adapter_manifest import read_adapter_manifest
from fedlora.exported.profiles import Profile
from fedlora.exported.sidecar import sidecar_of
from fedlora.family import decoder_shape
from fedlora.files.tensor_file import TensorFile, write_in_order
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.checks.folder_files import check_folder_files
from fedlora_export.checks.verify import check_second_reader, verify_folder
from fedlora_export.commands.verify import verify
from fedlora_export.export import export_base
from fedlora_export.genai import GENAI_CONFIG, TOKENIZER_CONFIG, genai_text, write_genai

from tests.tiny.adapters import random_adapter
from tests.tiny.checkpoints import llama_config, tiny_quantization, write_checkpoint
from tests.tiny.tokenizer_kinds import write_tokenizer


def test_an_exported_folder_passes_with_a_line_for_each_thing(exported_folder: Path) -> None:
    result = CliRunner().invoke(verify, [str(exported_folder)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith(f"base.json: base {open_pack(exported_folder).fingerprint}; ")
    graphs = ["decoder.base.onnx", "decoder.fast.onnx", "decoder.kernel.onnx", "decoder.onnx", "decoder.rows.onnx"]
    assert [line.split(":")[0] for line in lines[1:]] == [
        *(name for name in graphs for _ in range(2)),
        "first.onnx_adapter",
        str(exported_folder),
    ]
    assert lines[-2].endswith("profile compat, 14 modules of rank 4, finite; digest and base as its manifest tells")
    assert lines[-1].endswith(f"{len(list(exported_folder.iterdir()))} files, all of them known")


def test_an_adapter_of_the_profile_fast_passes(own_folder: Path) -> None:
    base = open_pack(own_folder)
    write_onnx_adapter(
        random_adapter(base), base.fingerprint, own_folder / "joined.onnx_adapter", joined_for=base.model
    )
    assert list(verify_folder(own_folder))[-2].startswith(
        "joined.onnx_adapter: profile fast, 14 modules of rank 4, finite;"
    )


def test_graphs_and_weights_that_are_links_are_refused(own_folder: Path) -> None:
    for name in ("decoder.base.onnx", "model.safetensors"):
        (own_folder / name).rename(own_folder.parent / name)
        (own_folder / name).symlink_to(own_folder.parent / name)
        with pytest.raises(GraphError, match=f"{name}: expected a file, no link"):
            list(verify_folder(own_folder))
        (own_folder / name).unlink()
        (own_folder.parent / name).rename(own_folder / name)


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


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def add_library(folder: Path) -> None:
    """A configuration that differs from ours in one entry, which genai would load."""
    config = json.loads((folder / GENAI_CONFIG).read_text())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def add_key_twice(folder: Path) -> None:
    """Two readers of JSON may take different ones of two keys of one name."""
    text = (folder / GENAI_CONFIG).read_text()
    (folder / GENAI_CONFIG).write_text(text.replace('{\n  "model"', '{\n  "model": {"type": "evil"},\n  "model"'))


def link_config(folder: Path) -> None:
    (folder / GENAI_CONFIG).rename(folder.parent / "elsewhere")
    (folder / GENAI_CONFIG).symlink_to(folder.parent / "elsewhere")


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
    "a library for genai": (add_library, GraphError, r"genai_config\.json: not what fedlora writes for a graph that is"),
    "a key for genai twice": (add_key_twice, GraphError, r"genai_config\.json: not what fedlora writes"),
    "no graph for genai": (remove("decoder.onnx*"), GraphError, r"is here \(fast, rows, kernel, base\), and it may"),
    "a link for genai": (link_config, PackError, r"genai_config\.json: a link or a folder; expected files alone"),
    "a tokenizer's class": (write("tokenizer_config.json", '{"a": 1}'), PackError, r"list it; expected \{\} alone"),
    "an unknown file": (write("custom_ops.so", ""), PackError, r"custom_ops\.so: not a file that fedlora writes; expected"),
    "unknown JSON": (write("notes.json", "{}"), PackError, r"notes\.json: not a file that fedlora writes; .*: remove it"),
    "a hidden file": (write(".onnx.json", "{}"), PackError, r"/\.onnx\.json: not a file that fedlora writes"),
    "a folder": (lambda f: (f / "more").mkdir(), PackError, "more: a link or a folder; expected files alone"),
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_was_changed_is_refused_by_its_place(own_folder: Path, what: str) -> None:
    change, kind, words = FOLDERS[what]
    change(own_folder)
    with pytest.raises(kind, match=words):
        list(verify_folder(own_folder))


def test_an_adapter_without_a_manifest_passes_and_is_said_to_be_known_by_31_bits(own_folder: Path) -> None:
    sidecar_of(own_folder / "first.onnx_adapter").unlink()
    assert read_adapter_manifest(own_folder / "first.onnx_adapter") is None
    assert list(verify_folder(own_folder))[-2].endswith("no manifest, so its base is known by 31 bits at most")


def test_the_files_for_genai_may_be_those_of_any_graph_that_is_there_or_missing(own_folder: Path) -> None:
    base = open_pack(own_folder)
    profiles: tuple[Profile, ...] = ("fast", "base")
    for profile in profiles:
        write_genai(base, profile)
        assert len(list(verify_folder(own_folder))) == 13
    (own_folder / GENAI_CONFIG).unlink()
    (own_folder / TOKENIZER_CONFIG).unlink()
    assert len(list(verify_folder(own_folder))) == 13


def test_the_file_for_genai_of_an_earlier_version_passes(tmp_path: Path) -> None:
    """It has the bos token of config.json, which this tokenizer does not put before a text."""
    source = write_checkpoint(tmp_path / "source", config=llama_config(vocab_size=512))
    write_tokenizer("bytes, byte-level processor (Qwen)", source)
    make_pack(str(source), tmp_path / "pack", tiny_quantization())
    export_base(base := open_pack(tmp_path / "pack"))
    now = json.loads((base.directory / GENAI_CONFIG).read_text())
    assert ("bos_token_id" in now["model"], now["model"]["eos_token_id"]) == (False, [4, 2])
    earlier = genai_text(decoder_shape(llama_config(vocab_size=512), "here"))
    assert json.loads(earlier)["model"]["bos_token_id"] == 1
    (base.directory / GENAI_CONFIG).write_text(earlier)
    list(verify_folder(base.directory))
    (base.directory / GENAI_CONFIG).write_text(earlier.replace('"bos_token_id": 1', '"bos_token_id": 3'))
    with pytest.raises(GraphError, match=r"genai_config\.json: not what fedlora writes"):
        list(verify_folder(base.directory))


def test_a_configuration_for_genai_that_the_pack_lists_is_checked_too(own_folder: Path) -> None:
    add_library(own_folder)
    base = open_pack(own_folder)
    with pytest.raises(GraphError, match=r"genai_config\.json: not what fedlora writes"):
        check_folder_files(base, listed=[path.name for path in own_folder.iterdir()])


def test_a_manifest_may_say_more_in_a_later_version_only(own_folder: Path) -> None:
    path = sidecar_of(own_folder / "decoder.onnx")
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra": 1}))
    with pytest.raises(GraphError, match="expected the fields format, version, base"):
        list(verify_folder(own_folder))


def test_a_file_of_tensors_that_the_safetensors_library_does_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_in_order(path, {"abcdef": ("F32", np.zeros(4, np.float32))})
    check_second_reader(TensorFile(path))
    path.write_bytes(path.read_bytes().replace(b"abcdef", b"\\ud800"))  # half a character, to JSON in Rust
    with pytest.raises(PackError, match=r"x\.safetensors: the safetensors library does not read it: .*; pack the base"):
        check_second_reader(TensorFile(path))


def test_a_tensor_that_the_safetensors_library_reads_otherwise_is_told_with_both_readings(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_in_order(path, {"a": ("F32", np.zeros(4, np.float32))})
    ours = TensorFile(path)
    write_in_order(path, {"a": ("F32", np.zeros((2, 2), np.float32))})
    with pytest.raises(
        PackError, match=r"a is \('F32', \(4,\)\) to fedlora and \('F32', \(2, 2\)\) to the safetensors"
    ):
        check_second_reader(ours)
