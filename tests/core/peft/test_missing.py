"""Where no adapter is, a message names what is there, and what it says to do works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fedlora.errors import AdapterError
from fedlora.files.hub import HubError, Listing
from fedlora.lora.adapter import Adapter
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.peft.finding import find_adapter
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Make = Callable[[Path, Path], Path]  # (a sound adapter, an empty place) -> what a person names


def _trainer(sound: Path, place: Path) -> Path:
    for step in (100, 20, 500):
        shutil.copytree(sound, place / f"checkpoint-{step}")
    (place / "trainer_state.json").write_text("{}")
    return place


def _hub_cache(sound: Path, place: Path) -> Path:
    cache, blobs = place / "models--someone--some-lora", place / "models--someone--some-lora" / "blobs"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(sound / name, blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return cache


def _file(name: str) -> Make:
    def make(sound: Path, place: Path) -> Path:
        place.mkdir()
        (place / name).write_bytes(b"x")
        return place

    return make


def _moved(below: str) -> Make:
    def make(sound: Path, place: Path) -> Path:
        shutil.copytree(sound, place / below)
        return place

    return make


ELSEWHERE: dict[str, tuple[Make, str, str]] = {
    "a Trainer's folder": (
        _trainer,
        "a Trainer's folder, with checkpoint-20, checkpoint-100, checkpoint-500",
        "checkpoint-500",
    ),
    "a hub's cache": (_hub_cache, "the cache of a hub's repository, with 0123abc", "snapshots/0123abc"),
    "an adapter of another name": (
        _moved("mine"),
        "PEFT keeps an adapter in a folder of its name, and here are mine",
        "mine",
    ),
    "a run of fedlora": (_moved("rounds/0003/adapter"), "a run of fedlora", "rounds/0003/adapter"),
}


@pytest.fixture
def sound(tmp_path: Path, adapter: Adapter) -> Path:
    write_peft(tmp_path / "sound", PeftDirectory(adapter=adapter))
    return tmp_path / "sound"


@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_folder_around_an_adapter_is_told_with_the_place_to_name(sound: Path, tmp_path: Path, what: str) -> None:
    make, words, place = ELSEWHERE[what]
    named = make(sound, tmp_path / "place")
    with pytest.raises(AdapterError) as refused:
        read_peft(named)
    assert words in str(refused.value)
    assert f"name {named / place}" in str(refused.value)
    assert read_peft(named / place).adapter.pairs


NO_ADAPTER: dict[str, tuple[Make, str]] = {
    "a base pack": (_file("base.json"), "a base pack, not an adapter"),
    "a whole model": (_file("config.json"), "a whole model, not an adapter: pack it with fedlora pack"),
    "an exported adapter": (_file("my.onnx_adapter"), "files of exported adapters, my.onnx_adapter: name"),
    "an adapter of MLX": (_file("adapters.safetensors"), "got adapters.safetensors, which PEFT does not load"),
    "an adapter of llama.cpp": (_file("lora.gguf"), "got lora.gguf, which PEFT does not load"),
    "weights without their configuration": (_file(WEIGHTS), f"copy {CONFIG} too"),
    "old weights without their configuration": (_file("adapter_model.bin"), f"copy {CONFIG} too"),
    "nothing of these": (_file("notes.txt"), "expected a PEFT directory with adapter_config.json"),
}


@pytest.mark.parametrize("what", NO_ADAPTER)
def test_what_is_no_adapter_is_told_by_what_it_is(sound: Path, tmp_path: Path, what: str) -> None:
    make, words = NO_ADAPTER[what]
    with pytest.raises(AdapterError) as refused:
        read_peft(make(sound, tmp_path / "place"))
    assert words in str(refused.value)


def test_pickled_weights_are_not_read_and_the_command_converts_them(
    sound: Path, adapter: Adapter, advised: Callable[[str, Path], None]
) -> None:
    tensors = load_file(sound / WEIGHTS)
    torch.save(tensors, sound / "adapter_model.bin")
    (sound / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is there, a pickle, which .* is not read") as refused:
        read_peft(sound)
    advised(str(refused.value), sound)
    assert read_peft(sound).adapter.pairs.keys() == adapter.pairs.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_file(sound / WEIGHTS).items())


def test_weights_that_share_memory_are_converted_too(sound: Path, advised: Callable[[str, Path], None]) -> None:
    tensors = load_file(sound / WEIGHTS)
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    shared: dict[str, Any] = {**tensors, name: tensors[name].T.contiguous().T}
    torch.save(shared, sound / "adapter_model.bin")
    (sound / WEIGHTS).unlink()
    with pytest.raises(AdapterError) as refused:
        read_peft(sound)
    advised(str(refused.value), sound)
    assert torch.equal(load_file(sound / WEIGHTS)[name], tensors[name])


def test_a_snapshot_that_was_copied_without_its_blobs_is_told(sound: Path, tmp_path: Path) -> None:
    cache = _hub_cache(sound, tmp_path / "place")
    shutil.copytree(cache / "snapshots" / "0123abc", tmp_path / "copied", symlinks=True)
    with pytest.raises(AdapterError, match=r"a link to .*blobs/adapter_config\.json, which is not there.*cp -rL"):
        read_peft(tmp_path / "copied")


def test_a_hub_id_is_asked_of_the_hub_and_a_path_is_not(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def snapshot(hub_id: str, *_: object) -> Path:
        asked.append(hub_id)
        if hub_id == "someone/some-lora":
            return sound
        raise HubError("offline mode is on")

    monkeypatch.setattr("fedlora.files.hub._listing", lambda hub_id, revision: Listing("0" * 40, {}))
    monkeypatch.setattr("fedlora.files.hub._snapshot", snapshot)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert read_peft(find_adapter("someone/some-lora")).adapter.pairs
    with pytest.raises(
        AdapterError, match=r"someone/else: no such file .* here, and the hub does not give it: offline mode"
    ):
        find_adapter("someone/else")
    for path in ("sound", "runs/mistyped", "./some/one", "/some/one", "a/b/c", "../x"):
        assert find_adapter(path) == Path(path)
    assert asked == ["someone/some-lora", "someone/else"]


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM"])
def test_a_head_within_the_factors_is_told_as_a_head(sound: Path, task_type: str) -> None:
    config = json.loads((sound / CONFIG).read_text())
    (sound / CONFIG).write_text(json.dumps({**config, "task_type": task_type}))
    tensors = load_file(sound / WEIGHTS) | {
        "base_model.model.classifier.modules_to_save.lora_A.weight": torch.zeros(4, 8)
    }
    save_file(tensors, sound / WEIGHTS)
    with pytest.raises(AdapterError, match="without classifier among target_modules"):
        read_peft(sound)
