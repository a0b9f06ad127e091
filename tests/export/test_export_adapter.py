from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import peft
import pytest
import torch
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError, PackError
from fedlora.exported.inputs import input_shapes, input_values, model_version
from fedlora.lora.adapter import Adapter
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora_client.reference import logits as torch_logits
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.commands.export import export
from fedlora_export.commands.export_adapter import export_adapter

from tests.export.graph_runs import graph_logits
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle, peft_oracle
from tests.tiny.adapters import LORAS, changed, random_adapter
from tests.tiny.llamas import DEFAULT, Packs, Variant
from tests.tiny.tokens import random_tokens


def run(*arguments: object) -> Result:
    return CliRunner().invoke(export_adapter, [str(argument) for argument in arguments])


def failure(result: Result, kind: type[Exception] | tuple[type[Exception], ...]) -> str:
    """The message of the FedloraError that a command ended with."""
    assert type(result.exception) in (kind if isinstance(kind, tuple) else (kind,)), result.exception
    return str(result.exception)


def content_of(path: Path) -> tuple[int, dict[str, Any]]:
    """(model version, {name: value}) as ONNX Runtime reads a file."""
    content = ort.AdapterFormat.read_adapter(str(path))
    return content.get_model_version(), {name: value.numpy().copy() for name, value in content.get_parameters().items()}


def write(directory: Path, adapter: Adapter, fingerprint: str | None) -> Path:
    write_peft(directory, PeftDirectory(adapter=adapter, base_fingerprint=fingerprint))
    return directory


@pytest.mark.parametrize("config", LORAS)
def test_the_file_holds_the_input_values_bit_for_bit(base: BasePack, tmp_path: Path, config: str) -> None:
    adapter = random_adapter(base, LORAS[config])
    source, output = write(tmp_path / "adapter", adapter, base.fingerprint), tmp_path / "a.onnx_adapter"
    result = run(source, "-o", output)
    assert result.exit_code == 0, result.output
    version, values = content_of(output)
    assert version == model_version(base.fingerprint)
    expected = input_values(adapter)
    assert values.keys() == expected.keys() <= input_shapes(base.shape.linear_modules()).keys()
    for name, value in expected.items():
        assert values[name].dtype == np.float32
        assert np.array_equal(values[name], value)


@pytest.mark.parametrize("config", LORAS)
def test_the_scaling_in_the_file_is_the_one_that_torch_uses(
    graphs: Callable[[Variant], BasePack], session: Any, tmp_path: Path, config: str
) -> None:
    pack = graphs(DEFAULT)
    adapter, tokens = random_adapter(pack, LORAS[config]), random_tokens(pack, 1, 10)
    assert run(write(tmp_path / "adapter", adapter, pack.fingerprint), "-o", tmp_path / "a").exit_code == 0
    _, values = content_of(tmp_path / "a")
    assert_close(graph_logits(session, pack, tokens, values), torch_logits(pack, tokens, adapter))


@pytest.mark.parametrize("output", [".", "..", "folder"])
def test_an_output_that_is_a_folder_is_refused(
    base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    source = write(tmp_path / "adapter", random_adapter(base), base.fingerprint)
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    message = failure(run(source, "-o", output), ConfigError)
    assert message == f"{output}: a folder; name the file to write, such as {Path(output) / 'my.onnx_adapter'}"
    assert [path.name for path in (tmp_path / "here").rglob("*")] == ["folder"]


def test_the_sizes_of_the_scaling_are_those_of_the_papers(base: BasePack) -> None:
    adapter = random_adapter(base, LORAS["rslora-with-patterns"])
    values = input_values(adapter)
    for module, scaling in {
        "model.layers.0.self_attn.k_proj": 6.0 / 2,  # alpha / sqrt(rank), rank 4
        "model.layers.0.self_attn.q_proj": 6.0,  # rank 1
        "model.layers.0.mlp.down_proj": 3.0 / 7**0.5,  # a rank and an alpha of its own
        "model.layers.1.self_attn.k_proj": 11.0 / 2,  # an alpha of its own
    }.items():
        expected = scaling * adapter.pairs[module].lora_B.T.astype(np.float64)
        assert_close(values[f"{module}.lora_B.weight"], expected)
        assert np.array_equal(values[f"{module}.lora_A.weight"], adapter.pairs[module].lora_A.T)


def test_an_adapter_that_does_not_record_its_base_needs_one_to_be_named(base: BasePack, tmp_path: Path) -> None:
    source, output = write(tmp_path / "adapter", random_adapter(base), None), tmp_path / "a.onnx_adapter"
    message = failure(run(source, "-o", output), AdapterMismatchError)
    assert "does not record its base" in message
    assert "pass --base" in message
    assert not output.exists()
    assert run(source, "-o", output, "--base", base.directory).exit_code == 0
    assert content_of(output)[0] == model_version(base.fingerprint)


def test_a_base_that_the_adapter_was_not_trained_on_is_refused_with_both_fingerprints(
    base: BasePack, packs: Packs, tmp_path: Path
) -> None:
    other = packs(Variant(seed=5))  # of the same shapes
    source, output = write(tmp_path / "adapter", random_adapter(base), base.fingerprint), tmp_path / "a.onnx_adapter"
    message = failure(run(source, "-o", output, "--base", other.directory), AdapterMismatchError)
    assert base.fingerprint[:16] in message
    assert other.fingerprint[:16] in message
    assert not output.exists()
    assert run(source, "-o", output, "--base", base.directory).exit_code == 0


def test_a_base_of_other_shapes_is_refused_by_its_module(base: BasePack, packs: Packs, tmp_path: Path) -> None:
    other = packs(Variant(inner=96))
    source = write(tmp_path / "adapter", random_adapter(base), None)
    message = failure(run(source, "-o", tmp_path / "a", "--base", other.directory), AdapterMismatchError)
    assert "model.layers.0.mlp.gate_proj updates a weight [172, 64], the base's is [96, 64]" in message


def test_a_base_that_is_no_pack_is_refused(base: BasePack, tmp_path: Path) -> None:
    source = write(tmp_path / "adapter", random_adapter(base), None)
    message = failure(run(source, "-o", tmp_path / "a", "--base", tmp_path), PackError)
    assert "not a base pack" in message


@pytest.mark.parametrize(
    ("fixture", "kind", "words"),
    [
        (
            "peft-gpt2-causal-tigrinya",
            AdapterMismatchError,
            "(made for gpt2): the base has no module transformer.h.0.attn",
        ),
        ("peft-opt125m-dpo", AdapterMismatchError, "the base has no module model.decoder.layers.0.self_attn"),
        ("peft-bert-seqcls", AdapterMismatchError, "the base has no module bert.encoder.layer.0.attention.self.query"),
        ("negative-peft-distilbert-classifier-target", AdapterError, "is neither lora_A or lora_B of a target module"),
    ],
)
def test_real_adapters_of_other_families_are_refused_for_a_llama_base(
    shared: Path, base: BasePack, tmp_path: Path, fixture: str, kind: type[Exception], words: str
) -> None:
    source, output = shared / "fixtures" / fixture, tmp_path / "a.onnx_adapter"
    message = failure(run(source, "-o", output, "--base", base.directory), kind)
    assert str(source) in message
    assert words in message
    assert not output.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_value_that_is_not_finite_is_refused_by_its_tensor(
    base: BasePack, tmp_path: Path, factor: str, value: float
) -> None:
    victim = "model.layers.1.self_attn.o_proj"

    def poison(module: str, lora_A: Any, lora_B: Any) -> tuple[Any, Any]:
        if module == victim:
            (lora_A if factor == "lora_A" else lora_B)[0, -1] = value
        return lora_A, lora_B

    source = write(tmp_path / "adapter", changed(random_adapter(base), poison), base.fingerprint)
    message = failure(run(source, "-o", tmp_path / "a"), AdapterError)
    assert f"{victim}.{factor}" in message
    assert not (tmp_path / "a").exists()


def test_a_scaling_that_overflows_is_refused_and_leaves_no_file(base: BasePack, tmp_path: Path) -> None:
    source = write(
        tmp_path / "adapter",
        changed(random_adapter(base), lambda module, lora_A, lora_B: (lora_A, np.full_like(lora_B, 3e38))),
        base.fingerprint,
    )
    # Each factor is finite; alpha / rank = 2 times B is not.
    result = run(source, "-o", tmp_path / "a")
    assert isinstance(result.exception, AdapterError), result.exception
    assert not (tmp_path / "a").exists()


def test_a_missing_adapter_is_refused_by_what_was_expected(tmp_path: Path) -> None:
    message = failure(run(tmp_path / "nowhere", "-o", tmp_path / "a"), ConfigError)
    assert message.endswith("nowhere: there is no such file or folder")
    (tmp_path / "empty").mkdir()
    message = failure(run(tmp_path / "empty", "-o", tmp_path / "a"), AdapterError)
    assert "adapter_config.json: cannot be read: No such file or directory; expected a PEFT directory" in message


def test_an_existing_file_is_replaced_whole(base: BasePack, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    path.write_bytes(b"x" * 1_000_000)
    adapter = random_adapter(base)
    write_onnx_adapter(adapter, base.fingerprint, path)
    assert content_of(path)[1].keys() == input_values(adapter).keys()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx_adapter", "a.onnx_adapter.json"]


def test_an_adapter_that_peft_wrote_is_exported_for_a_named_base(base: BasePack, tmp_path: Path) -> None:
    adapter = random_adapter(base, LORAS["rslora"])
    model, _ = peft_oracle(base, adapter)
    model.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert run(tmp_path / "theirs", "-o", tmp_path / "a", "--base", base.directory).exit_code == 0
    _, values = content_of(tmp_path / "a")
    expected = input_values(adapter)
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[name], expected[name]) for name in expected)
    assert read_peft(tmp_path / "theirs").base_fingerprint is None


def test_the_command_exports_a_base_and_tells_how_far_it_is_from_torch(base: BasePack, tmp_path: Path) -> None:
    result = CliRunner().invoke(export, [str(base.directory), "-o", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert str(tmp_path / "model" / "decoder.onnx") in result.stderr
    assert "largest difference from torch's logits: base " in result.stderr
    assert (tmp_path / "model" / "decoder.onnx").is_file()


def saved_by_peft(base: BasePack, directory: Path, config: peft.PeftConfig) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about what these adapters are
        model = peft.get_peft_model(oracle(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:  # as a step of training would
                    parameter += 0.1
        model.save_pretrained(directory)
    return directory


TARGETS = ["q_proj", "up_proj"]
OTHERS: dict[str, tuple[peft.PeftConfig, str]] = {
    "biases": (peft.LoraConfig(target_modules=TARGETS, bias="lora_only"), "bias is 'lora_only'; only 'none'"),
    "LoRA biases": (peft.LoraConfig(target_modules=TARGETS, lora_bias=True), "lora_bias is set; LoRA biases"),
    "LoHa": (peft.LoHaConfig(target_modules=TARGETS), "peft_type is 'LOHA', which is not supported"),
    "LoKr": (peft.LoKrConfig(target_modules=TARGETS), "peft_type is 'LOKR'"),
    "IA3 of an input": (
        peft.IA3Config(target_modules=TARGETS, feedforward_modules=["up_proj"]), "up_proj: its vector is of its input"
    ),
    "a trained embedding": (
        peft.LoraConfig(target_modules=["embed_tokens"]), "lora_embedding_A is LoRA on an embedding, which is not"
    ),
    "trained tokens": (
        peft.LoraConfig(target_modules=TARGETS, trainable_token_indices=[1, 2]), "trainable_token_indices is set"
    ),
    "a saved head": (
        peft.LoraConfig(target_modules=TARGETS, modules_to_save=["lm_head"]),
        "lm_head.weight (modules_to_save), which an adapter file cannot carry",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_peft_saves_and_an_adapter_file_cannot_hold_is_refused_by_its_name(
    base: BasePack, tmp_path: Path, name: str
) -> None:
    config, words = OTHERS[name]
    source = saved_by_peft(base, tmp_path / "theirs", config)
    message = failure(run(source, "-o", tmp_path / "a", "--base", base.directory), (AdapterError, AdapterMismatchError))
    assert words in message
    assert str(source) in message
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
