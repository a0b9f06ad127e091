"""What may lie in the place of any file that we read: a pipe, an endless device, brackets, holes. None is waited for,
none fills the memory; each is refused with one sentence of ours."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from fedlora.base.checkpoint import Checkpoint
from fedlora.base.pack import open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.config.run import DataConfig, read_scenario
from fedlora.data.chat_template import load_chat_template
from fedlora.errors import FedloraError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.inputs import input_shapes
from fedlora.fleet.bundle import read_bundle
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.peft.mapped import open_mapped
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_serve.http.service.config_file import read_config
from fedlora_simulations.datasets.shakespeare import shakespeare
from fedlora_simulations.study.file import read_study
from fedlora_simulations.study.results import Results

from tests.fuzz.reader import Reader as FuzzReader
from tests.fuzz.run_readers import runs
from tests.fuzz.signed_readers import signed_runs
from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import tiny_pack, write_checkpoint

MOST_SECONDS, MOST_KILOBYTES = 10, 150_000
Reader = Callable[[Path], object]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def brackets(path: Path) -> None:
    path.write_bytes(b'{"x":[' + b"[]," * 5_000_000 + b"[]]}")


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


READERS: Mapping[str, tuple[str, ...]] = {
    "pack": ("base.json", "config.json", "model.safetensors", "tokenizer.json", "generation_config.json"),
    "chat": ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"),
    "checkpoint": ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "mapped adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "adapter file": ("a.onnx_adapter", "a.onnx_adapter.json"),
    "run": ("run.toml",),
    "study": ("study.toml",),
    "service": ("serve.toml",),
    "bundle": ("bundle.json",),
    "run directory": (
        "config.json", "run.json", "metrics.jsonl", "rounds/0001/round.json", "rounds/0001/sealed.json",
        "rounds/0001/adapter/adapter_config.json", "rounds/0001/adapter/adapter_model.safetensors",
    ),
    "signed run": (
        "head.json", "config.json", "metrics.jsonl", "rounds/0001/record.json", "rounds/0001/answers.jsonl",
        "rounds/0001/adapter/adapter_model.safetensors",
    ),
    "results": ("results.jsonl",),
    "roles": ("roles.jsonl.gz",),
}  # fmt: skip

UNREAD = {
    *(
        ("pack", "generation_config.json", each) for each in (pipe, endless, brackets, hole)
    ),  # which base.json does not list
    ("checkpoint", "tokenizer_config.json", brackets),  # copied as a text; the readers of "chat" refuse it
    ("run directory", "metrics.jsonl", brackets),  # half a line, as a killed server leaves it
    ("results", "results.jsonl", brackets),  # half a line
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each reader, as it is read."""
    folder = tmp_path_factory.mktemp("sound")
    checkpoint = write_checkpoint(folder / "checkpoint")
    pack = tiny_pack(folder / "pack", checkpoint)
    shutil.copytree(checkpoint, folder / "chat")
    modules = pack.model.linear_modules()
    adapter = adapter_on(LoraConfig(rank=2, target_modules=("q_proj",)), modules)
    write_peft(folder / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=pack.fingerprint))
    shutil.copytree(folder / "adapter", folder / "mapped adapter")
    (folder / "adapter file").mkdir()
    write_onnx_adapter(adapter, pack.fingerprint, folder / "adapter file" / "a.onnx_adapter")
    shutil.copytree(run_reader(folder).folder, folder / "run directory")
    shutil.copytree(signed_run_reader(folder).folder, folder / "signed run")
    for name in ("run", "study", "service", "bundle", "results", "roles"):
        (folder / name).mkdir()
    return folder


@cache
def run_reader(sound: Path) -> FuzzReader:
    """The directory of a run, and what goes on with it."""
    return runs(sound / "made")


@cache
def signed_run_reader(sound: Path) -> FuzzReader:
    """The directory of a run of a fleet that signs, and what holds it against its records."""
    return signed_runs(sound)


def each_pair(folder: Path) -> None:
    adapter = open_mapped(folder)
    for module in adapter.shapes:
        adapter.pair(module)


def reader(name: str, sound: Path) -> Reader:
    pack = open_pack(sound / "pack")

    def checkpoint(folder: Path) -> None:
        Checkpoint(folder)
        make_pack(str(folder), folder.parent / "made", Quantization(block_size=32))

    readers: dict[str, Reader] = {
        "pack": open_pack,
        "chat": load_chat_template,
        "checkpoint": checkpoint,
        "adapter": read_peft,
        "mapped adapter": each_pair,
        "adapter file": lambda folder: load_adapter_file(
            folder / "a.onnx_adapter",
            base_fingerprint=pack.fingerprint,
            inputs=input_shapes(pack.model.linear_modules()),
        ),
        "run": lambda folder: read_scenario(folder / "run.toml"),
        "study": lambda folder: read_study(folder / "study.toml"),
        "service": lambda folder: read_config(folder / "serve.toml", {}, {}),
        "bundle": lambda folder: read_bundle(folder / "bundle.json"),
        "run directory": lambda folder: run_reader(sound).read(folder, ""),
        "signed run": lambda folder: signed_run_reader(sound).read(folder, ""),
        "results": Results,
        "roles": lambda folder: shakespeare(DataConfig(path=str(folder / "roles.jsonl.gz")), {}),
    }
    return readers[name]


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where something takes too long, or too much memory."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it still read after {MOST_SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_KILOBYTES, f"{grown / 1000:.0f} MB"


@pytest.mark.parametrize("instead", [pipe, endless, brackets, hole])
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in READERS.items() for file in files])
def test_whatever_lies_in_a_files_place_is_refused_in_time_and_memory(
    sound: Path, tmp_path: Path, name: str, file: str, instead: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(sound / name, folder)
    path = folder / file
    path.unlink(missing_ok=True)
    instead(path)
    read = reader(name, sound)
    with bounded():
        try:
            read(folder)
        except FedloraError as error:
            assert str(error).startswith((str(path), str(folder))), error
            assert "\n" not in str(error)
        else:
            assert (name, file, instead) in UNREAD, "it was taken for a sound one"
