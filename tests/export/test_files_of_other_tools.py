"""An adapter file as Olive's convert-adapters writes it runs on our graph as it is."""

# T tokens, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import peft
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError
from fedlora.exported.inputs import input_values
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.reference import logits as torch_logits
from fedlora_serve.local.engine import Engine
from numpy.typing import NDArray

from tests.export.graph_runs import graph_logits, open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import peft_oracle
from tests.tiny.adapters import random_adapter
from tests.tiny.llamas import DEFAULT, VARIANTS, Variant
from tests.tiny.tokens import random_tokens

Graphs = Callable[[Variant], BasePack]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BASES = {"rotated-outside": DEFAULT, "rotated-inside": VARIANTS["4-bit-asymmetric-untied-mha-head16"]}
LORAS = {
    "attention": LoraConfig(rank=4, alpha=8.0, target_modules=ATTENTION),
    "rslora": LoraConfig(rank=16, alpha=6.0, use_rslora=True, target_modules=ATTENTION),
    "every-module": LoraConfig(rank=2, alpha=3.0),
}


def converted(directory: Path, output: Path, version: int | None = None) -> Path:
    """The file of a PEFT directory in Olive's manner: alpha / rank in B, both transposed.

    Its versions name no base: Olive (0.13) sets none.
    """
    config = peft.PeftConfig.from_pretrained(str(directory))
    scaling = np.float32(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))
    values = {}
    for tensor, factor in peft.load_peft_weights(str(directory), device="cpu").items():
        value = factor.numpy().T * (scaling if ".lora_B." in tensor else np.float32(1))
        values[tensor.removeprefix("base_model.model.")] = np.ascontiguousarray(value)
    content = ort.AdapterFormat()
    if version is not None:
        content.set_adapter_version(version)
        content.set_model_version(version)
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    content.export_adapter(str(output))
    return output


@pytest.fixture(params=LORAS)
def adapter_file(
    request: pytest.FixtureRequest, graphs: Graphs, base_name: str, tmp_path: Path
) -> tuple[BasePack, Adapter, Path]:
    """(an exported base, an adapter that PEFT saved, the file that was made of it)"""
    base = graphs(BASES[base_name])
    adapter = random_adapter(base, LORAS[request.param])
    model, _ = peft_oracle(base, adapter)
    model.save_pretrained(tmp_path / "adapter")
    return base, adapter, converted(tmp_path / "adapter", tmp_path / "theirs.onnx_adapter")


@pytest.fixture(params=BASES)
def base_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def activated(session: Any, base: BasePack, tokens: NDArray[np.int64], file: Path | None) -> NDArray[np.float32]:
    """The logits [1, T, V] with an adapter that the runtime itself loads and activates for this run."""
    options = ort.RunOptions()
    if file:
        adapter = ort.LoraAdapter()
        adapter.Load(str(file))
        options.add_active_adapter(adapter)
    shape = base.shape
    empty = np.zeros((1, shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": empty for i in range(shape.num_layers) for kind in ("key", "value")}
    logits: NDArray[np.float32]
    (logits,) = session.run(["logits"], {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **past}, options)
    return logits


def test_it_runs_unmodified_as_the_active_adapter_with_the_logits_of_torch(
    adapter_file: tuple[BasePack, Adapter, Path],
) -> None:
    base, adapter, file = adapter_file
    session, tokens = open_session(base.directory / "decoder.onnx"), random_tokens(base, 1, 12)
    plain = activated(session, base, tokens, None)
    got = activated(session, base, tokens, file)
    assert_close(got, torch_logits(base, tokens, adapter))
    assert np.abs(got - plain).max() > 0.1
    assert np.array_equal(activated(session, base, tokens, None), plain)  # it was active for that run alone


def test_its_names_and_values_are_the_inputs_of_the_graph(adapter_file: tuple[BasePack, Adapter, Path]) -> None:
    base, adapter, file = adapter_file
    content = ort.AdapterFormat.read_adapter(str(file))
    assert (content.get_adapter_version(), content.get_model_version()) == (0, 0)
    theirs, ours = content.get_parameters(), input_values(adapter)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name].numpy(), value, rtol=1e-6)
    tokens = random_tokens(base, 1, 12)
    session = open_session(base.directory / "decoder.onnx")
    assert_close(activated(session, base, tokens, file), graph_logits(session, base, tokens, ours))


@pytest.mark.parametrize("version", [0, 1])
def test_the_engine_takes_it_where_a_base_without_a_name_is_allowed(
    adapter_file: tuple[BasePack, Adapter, Path], tmp_path: Path, version: int
) -> None:
    base, adapter, _ = adapter_file
    file = converted(tmp_path / "adapter", tmp_path / "versioned.onnx_adapter", version)
    engine, tokens = Engine(base.directory, threads=1), random_tokens(base, 1, 12)
    with pytest.raises(
        AdapterMismatchError, match=rf"names no base \(model version {version}\), as files of other tools do"
    ):
        engine.load_adapter(file)
    loaded = engine.load_adapter(file, allow_unnamed_base=True)
    scores = engine.start(loaded).step(tokens[0].tolist())
    assert_close(scores, torch_logits(base, tokens, adapter)[0, -1])
