"""Each family from a checkpoint to text: packed, trained for a few steps, exported; three engines write the same text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.config.run import TrainConfig
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.data.windows import read_windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import choose_compute
from fedlora_client.training.trainer import train
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.export import export_base
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.local.engine import Engine

from tests.reference.greedy import NEW_TOKENS, generator_of, rest_of, torch_tokens
from tests.tiny.families import FAMILIES
from tests.tiny.tokenizer import byte_tokenizer

TEXT = "the same words again and again, the same words again and again, the same words again and again"


def trained_adapter(base: BasePack, lr: float = 0.05) -> tuple[Adapter, tuple[float, ...]]:
    """(an adapter on every linear module after a few steps, the loss of each step)"""
    modules = base.shape.linear_modules()
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))
    start = initial_adapter(LoraConfig(rank=4, alpha=16.0, target_modules=leaves), modules, np.random.default_rng(0))
    decoder = Decoder(base, choose_compute("float32", device="cpu"))
    windows = read_windows([TEXT], base.directory, base.shape, 24, "here")
    config = TrainConfig(steps=10, batch_size=2, sequence_length=24, lr=lr)
    result = train(decoder, start, windows, config, np.random.default_rng(0))
    return result.adapter, result.losses


class Trained(NamedTuple):
    """An exported base, the file of an adapter that was trained on it, and what torch writes without and with it."""

    base: BasePack
    file: Path
    plain: list[int]
    adapted: list[int]


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, family_folder: Callable[[str], BasePack], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    base = family_folder(request.param)
    adapter, losses = trained_adapter(base)
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    file = tmp_path_factory.mktemp(request.param) / "trained.onnx_adapter"
    write_onnx_adapter(adapter, base.fingerprint, file)
    return Trained(base, file, torch_tokens(base, prompt_of()), torch_tokens(base, prompt_of(), adapter))


def prompt_of() -> list[int]:
    ids: list[int] = byte_tokenizer().encode("again and ag", add_special_tokens=False).ids
    return ids


def engine_tokens(engine: Engine, prompt: list[int], adapter: LoadedAdapter | None) -> list[int]:
    ends = {*engine.base.shape.eos_token_ids, engine.base.shape.bos_token_id}
    decoding, step = engine.start(adapter), prompt
    tokens: list[int] = []
    while len(tokens) < NEW_TOKENS and not ends & set(tokens):
        step = [int(decoding.step(step).argmax())]
        tokens += step
    return tokens


def genai_tokens(model: Path, prompt: list[int], adapter: Path | None) -> list[int]:
    og = pytest.importorskip("onnxruntime_genai", reason="not installed: pip install fedlora[dev]")
    runtime = og.Model(str(model))
    generator = generator_of(og, runtime, len(prompt) + NEW_TOKENS)
    adapters = og.Adapters(runtime)
    if adapter:
        adapters.load(str(adapter), "trained")
        generator.set_active_adapter(adapters, "trained")
    generator.append_tokens(prompt)
    return rest_of(generator)


def test_torch_and_the_engine_write_the_same_text(family: Trained) -> None:
    engine, prompt = Engine(family.base.directory, threads=1), prompt_of()
    assert engine_tokens(engine, prompt, None) == family.plain
    assert engine_tokens(engine, prompt, engine.load_adapter(family.file)) == family.adapted
    assert family.plain != family.adapted


def test_torch_and_onnxruntime_genai_write_the_same_text(family: Trained) -> None:
    prompt = prompt_of()
    assert genai_tokens(family.base.directory, prompt, None) == family.plain
    assert genai_tokens(family.base.directory, prompt, family.file) == family.adapted


def test_a_real_model_writes_the_same_story_in_all_three_engines(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    make_pack(str(source), tmp_path / "pack", Quantization(bits=8, block_size=32))
    export_base(open_pack(tmp_path / "pack"), tmp_path / "model", accuracy_level=FLOAT_ACCURACY)
    base = open_pack(tmp_path / "model")
    adapter, losses = trained_adapter(base, lr=0.005)
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    file = tmp_path / "trained.onnx_adapter"
    write_onnx_adapter(adapter, base.fingerprint, file)
    engine = Engine(base.directory, threads=1)
    prompt = [1, *engine.tokenizer.encode("Once upon a time", add_special_tokens=False).ids]
    plain, adapted = torch_tokens(base, prompt), torch_tokens(base, prompt, adapter)
    assert plain != adapted
    assert engine_tokens(engine, prompt, None) == genai_tokens(base.directory, prompt, None) == plain
    assert engine_tokens(engine, prompt, engine.load_adapter(file)) == adapted
    assert genai_tokens(base.directory, prompt, file) == adapted
