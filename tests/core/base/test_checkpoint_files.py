"""A checkpoint's files: what is said of a directory where other files lie, and of a hub id that has others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fedlora.base.checkpoint import Checkpoint, find_checkpoint
from fedlora.base.packing import make_pack
from fedlora.errors import CheckpointError
from fedlora.files.hub import Listing

from tests.tiny.checkpoints import llama_config, tiny_quantization, write_checkpoint

# {file: what is said of it} where there is no model.safetensors.
OTHERS = {
    "model-q4_k_m.gguf": ("a GGUF file", "unquantized"),
    "pytorch_model.bin": ("a PyTorch pickle", "save_pretrained"),
    "pytorch_model-00001-of-00002.bin": ("a PyTorch pickle", "save_pretrained"),
    "adapter_model.safetensors": ("an adapter of PEFT", "merge_and_unload"),
    "model.fp16.safetensors": ("the weights of a variant", "model.safetensors"),
    "model-00001-of-00002.safetensors": ("shards without model.safetensors.index.json", "copy"),
    "consolidated.safetensors": ("in the format of the model's authors", "transformers"),
    "consolidated.00.pth": ("in the format of the model's authors", "transformers"),
    "tf_model.h5": ("weights of TensorFlow", "save_pretrained"),
    "flax_model.msgpack": ("weights of Flax", "save_pretrained"),
    "model.onnx": ("an ONNX graph", "exported from"),
    "weights.safetensors": ("under another name", "name it model.safetensors"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_another_kind_are_named_with_what_to_do(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(checkpoint)
    assert f"no model.safetensors and no model.safetensors.index.json, but {name}, " in str(caught.value)
    for part in OTHERS[name]:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["model.gguf", "adapter_model.safetensors", "params.json"])
def test_a_directory_of_another_kind_without_config_json_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=rf"holds {name}, .*"):
        Checkpoint(tmp_path)


def test_a_checkpoint_one_folder_further_down_is_pointed_to(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run" / "checkpoint-10")
    write_checkpoint(tmp_path / "models--a--b" / "snapshots" / "4d7a")
    for above, below in (("run", "run/checkpoint-10"), ("models--a--b", "models--a--b/snapshots/4d7a")):
        with pytest.raises(CheckpointError, match=rf"there is one below it: pass {tmp_path / below}$"):
            Checkpoint(tmp_path / above)


def test_a_base_pack_is_no_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    make_pack(checkpoint, tmp_path / "pack", tiny_quantization())
    with pytest.raises(CheckpointError, match="a base pack already"):
        Checkpoint(tmp_path / "pack")


def test_the_file_of_weights_points_to_its_directory(checkpoint: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"model.safetensors: a file; expected a directory .*: pass {checkpoint}$"
    ):
        find_checkpoint(str(checkpoint / "model.safetensors"))


def test_a_gguf_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(68))
    with pytest.raises(CheckpointError, match=r"m.gguf: a GGUF file.*unquantized checkpoint"):
        find_checkpoint(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("there", [["tokenizer.model"], ["vocab.txt"], ["vocab.json", "merges.txt"], []])
def test_a_slow_tokenizer_alone_is_named_with_how_to_make_it_fast(
    tmp_path: Path, checkpoint: Path, there: list[str]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    for name in there:
        (checkpoint / name).write_text("x")
    with pytest.raises(CheckpointError) as caught:
        make_pack(checkpoint, tmp_path / "pack", tiny_quantization())
    assert "AutoTokenizer.from_pretrained(" in str(caught.value)
    assert (there[0] if there else "MODEL-ID") in str(caught.value)


class _Hub:
    """A hub with one model, that counts what is downloaded of it."""

    def __init__(self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._source, self._target, self.patterns = source, target, []  # type: ignore[var-annotated]
        monkeypatch.setattr("fedlora.files.hub._snapshot", self._download)
        sizes = {path.name: path.stat().st_size for path in source.iterdir()}
        monkeypatch.setattr("fedlora.files.hub._listing", lambda hub_id, revision: Listing("0" * 40, sizes))

    def _download(self, _: str, revision: str, patterns: list[str], wanted: dict[str, int]) -> Path:
        assert revision == "0" * 40
        self.patterns += patterns
        self._target.mkdir(exist_ok=True)
        for pattern in patterns:
            for path in self._source.glob(pattern):
                assert wanted[path.name] == path.stat().st_size
                shutil.copyfile(path, self._target / path.name)
        return self._target


def test_a_model_of_the_hub_is_downloaded_with_its_weights(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub(checkpoint, tmp_path / "hub", monkeypatch)
    assert find_checkpoint("someone/some-model") == tmp_path / "hub"
    assert "model.safetensors" in hub.patterns
    make_pack(tmp_path / "hub", tmp_path / "pack", tiny_quantization())


def test_a_quantized_model_of_the_hub_is_refused_before_its_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = llama_config()
    source = write_checkpoint(tmp_path / "c", config=config)
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "awq", "bits": 4}}')
    (source / "README.md").write_text("---\nbase_model: someone/plain\n---\n")
    hub = _Hub(source, tmp_path / "hub", monkeypatch)
    with pytest.raises(CheckpointError, match=r"quantized already, with AWQ, 4 bits; .*\(someone/plain\)"):
        find_checkpoint("someone/some-model")
    assert "model.safetensors" not in hub.patterns


@pytest.mark.parametrize(("name", "kind"), [("model-q8_0.gguf", "a GGUF file"), ("pytorch_model.bin", "weights as a")])
def test_a_model_of_the_hub_without_safetensors_is_refused_by_what_it_has(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    _Hub(checkpoint, tmp_path / "hub", monkeypatch)
    with pytest.raises(CheckpointError, match=rf"someone/some-model: no model.safetensors .*, but {name}, {kind}"):
        find_checkpoint("someone/some-model")
