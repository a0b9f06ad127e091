"""`fedlora evaluate`: one set of numbers, whatever the adapter is kept in and whichever runtime computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.base.heads import initial_extras
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.config.run import DataConfig, RunConfig
from fedlora.errors import AdapterError, ConfigError, DataError, GraphError
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.output_scale import METHODS
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.device import Device
from fedlora_client.reference import logits
from fedlora_export.adapter_export import export_peft
from fedlora_export.export import export_base
from numpy.typing import NDArray

from tests.client.encoder.test_training import records, written
from tests.export.test_heads import for_labels
from tests.tiny.adapters import LORAS, random_adapter
from tests.tiny.encoders import encoder_pack
from tests.tiny.kinds import adapter_of_kind
from tests.tiny.llamas import VARIANTS, Packs
from tests.tiny.releases import committed_run

TOLERANCE = 2e-4  # of a loss, between torch and the graph: that of a graph's logits
Told = Callable[..., dict[str, Any]]


def told(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(commands, ["evaluate", *map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def said(*words: object) -> str:
    return CliRunner().invoke(commands, ["evaluate", *map(str, words)], catch_exceptions=False).output


def saved(base: BasePack, folder: Path, config: str = "rank-and-alpha-patterns") -> Path:
    content = PeftDirectory(adapter=random_adapter(base, LORAS[config]), base_fingerprint=base.fingerprint)
    write_peft(folder, content, base_name=base.source)
    return folder


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal but for the runtime and where the adapter lies."""
    apart = {"runtime", "adapter", "round"}
    assert one.keys() == other.keys()
    for name in one.keys() - apart:
        expected = (
            pytest.approx(other[name], abs=TOLERANCE, rel=TOLERANCE) if isinstance(other[name], float) else other[name]
        )
        assert one[name] == expected, name


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    lines = [
        {
            "prompt": f"{number} and {number}",
            "choices": [str(number), str(2 * number), f"ü{number}"],
            "answer": number % 3,
        }
        for number in range(1, 15)
    ]
    return written(tmp_path / "questions.jsonl", lines)


@pytest.mark.parametrize("variant", ["4-bit-symmetric-tied-gqa-head8", "4-bit-asymmetric-untied-mha-head16"])
def test_the_adapter_is_the_same_in_every_form_and_in_both_runtimes(
    packs: Packs, variant: str, questions: Path, tmp_path: Path
) -> None:
    base = packs(VARIANTS[variant])
    directory = saved(base, tmp_path / "adapter")
    export_peft(directory, tmp_path / "a.onnx_adapter", base=base)
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY)
    alone = told(base.directory, questions)
    expected = told(base.directory, directory, questions)
    assert expected["questions"] == 14
    assert abs(expected["loss"] - alone["loss"]) > 0.01
    same(told(base.directory, tmp_path / "a.onnx_adapter", questions), expected)
    for adapter in (directory, tmp_path / "a.onnx_adapter"):
        in_graph = told(base.directory, adapter, questions, "--graph", tmp_path / "graph")
        assert in_graph["runtime"] == "ONNX Runtime, decoder.onnx in float32"
        same(in_graph, expected)
    same(told(base.directory, questions, "--graph", tmp_path / "graph"), alone)


@pytest.mark.parametrize("kind", METHODS)
def test_an_adapter_that_scales_is_the_same_in_torch_and_in_a_graph(
    base: BasePack, questions: Path, tmp_path: Path, kind: str
) -> None:
    content = PeftDirectory(adapter=adapter_of_kind(kind, base), base_fingerprint=base.fingerprint)
    write_peft(tmp_path / "a", content, base_name="base")
    export_peft(tmp_path / "a", tmp_path / "a.onnx_adapter", base)
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY, takes_scales=True)
    expected = told(base.directory, tmp_path / "a", questions)
    assert abs(expected["loss"] - told(base.directory, questions)["loss"]) > 0.01
    for place in ("a", "a.onnx_adapter"):
        same(told(base.directory, tmp_path / place, questions, "--graph", tmp_path / "graph"), expected)
    with pytest.raises(
        AdapterError, match=r"name the adapter's PEFT directory, or compute in a graph with --graph DIR"
    ):
        said(base.directory, tmp_path / "a.onnx_adapter", questions)


def test_a_prompt_is_the_same_as_a_directory_in_torch_and_as_a_file_in_both_runtimes(
    base: BasePack, questions: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "adapter"
    write_peft(directory, PeftDirectory(adapter=adapter_of_kind("prompt", base), base_fingerprint=base.fingerprint))
    export_peft(directory, tmp_path / "a.onnx_adapter", base)
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY)
    words = (questions, "--length", 48)  # the context is 64
    expected = told(base.directory, directory, *words)
    same(told(base.directory, tmp_path / "a.onnx_adapter", *words), expected)
    same(told(base.directory, tmp_path / "a.onnx_adapter", *words, "--graph", tmp_path / "graph"), expected)


def test_a_graph_that_rounds_activations_tells_so_and_what_it_loses(
    base: BasePack, questions: Path, tmp_path: Path
) -> None:
    export_base(base, tmp_path / "graph")
    in_graph, expected = told(base.directory, questions, "--graph", tmp_path / "graph"), told(base.directory, questions)
    assert in_graph["runtime"] == "ONNX Runtime, decoder.onnx with activations in int8"
    assert in_graph["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert in_graph["loss"] != pytest.approx(expected["loss"], rel=1e-5)


def test_text_of_several_windows_and_records_side_by_side_have_one_loss(base: BasePack, tmp_path: Path) -> None:
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY)
    directory = saved(base, tmp_path / "adapter")
    (tmp_path / "plain.txt").write_text("".join(f"line {number} of a text\n" for number in range(30)))
    written(
        tmp_path / "several.jsonl",
        [{"prompt": f"{number}?", "completion": "yes" * number} for number in range(1, 9)]
        + [{"text": "and a document"}],
    )
    for name in ("plain.txt", "several.jsonl"):
        words = (base.directory, directory, tmp_path / name, "--length", 32)
        same(told(*words, "--graph", tmp_path / "graph"), told(*words))


def test_a_run_s_round_is_measured_as_the_run_measures_it(base: BasePack, tmp_path: Path) -> None:
    run = committed_run(tmp_path / "run", base)
    (tmp_path / "text.txt").write_text("a small text, which nobody has seen\n" * 9)
    config = RunConfig(base=str(base.directory), data=DataConfig(name="files"))
    config = RunConfig.from_flat({**config.flat(), "train.compute": "float32", "train.sequence_length": 32}, "test")
    device = Device(config, {"data-path": str(tmp_path / "text.txt")})
    parts = [device.measure(part, random_adapter(base, seed=1)) for part in ("train", "held_out")]
    first = told(base.directory, run, tmp_path / "text.txt", "--round", 1, "--length", 32)
    assert first["round"] == 1
    tokens = sum(part.tokens for part in parts)
    # The device reads it in two parts, of which the second begins anew.
    assert first["loss"] == pytest.approx(sum(part.loss * part.tokens for part in parts) / tokens, abs=0.1)
    last = told(base.directory, run, tmp_path / "text.txt", "--length", 32)
    assert last["round"] == 2
    same(last, told(base.directory, run / "rounds" / "0002" / "adapter", tmp_path / "text.txt", "--length", 32))
    assert last["loss"] != first["loss"]


def test_labels_have_the_scores_that_a_device_tells(tmp_path: Path) -> None:
    base = encoder_pack("bert")
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY)
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    data = written(tmp_path / "data.jsonl", records(40))
    found = told(base.directory, tmp_path / "adapter", data, "--length", 24)
    same(told(base.directory, tmp_path / "adapter", data, "--length", 24, "--graph", tmp_path / "graph"), found)
    device = Device(
        RunConfig.from_flat(
            {
                "base": str(base.directory),
                "data.name": "files",
                "train.compute": "float32",
                "train.sequence_length": 24,
            },
            "test",
        ),
        {"data-path": str(data)},
    )
    parts = [device.measure(part, random_adapter(base)) for part in ("train", "held_out")]
    assert found["measured"] == 40 == sum(part.tokens for part in parts)
    assert found["loss"] == pytest.approx(sum(part.loss * part.tokens for part in parts) / 40, rel=1e-5)
    counts = [part.labels for part in parts if part.labels]
    assert (counts[0] + counts[1]).scores() == pytest.approx(
        {name: found[name] for name in ("accuracy", "macro_f1", "mcc")}
    )
    assert 0 < found["accuracy"] < 1
    share = found["accuracy"]
    assert found["accuracy_stderr"] == pytest.approx((share * (1 - share) / 39) ** 0.5)


def test_a_head_that_trained_is_measured_with_its_adapter(tmp_path: Path) -> None:
    base = encoder_pack("bert")
    extras = {name: value + np.float32(0.3) * (number + 1) for number, (name, value) in
              enumerate(initial_extras(("classifier",), base).items())}  # fmt: skip
    extras = {name: np.ascontiguousarray(value[::-1]) for name, value in extras.items()}
    adapter = with_extras(random_adapter(base), extras)
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    write_peft(tmp_path / "plain", PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    data = written(tmp_path / "data.jsonl", records(40))
    found = told(base.directory, tmp_path / "adapter", data, "--length", 24)
    assert abs(found["loss"] - told(base.directory, tmp_path / "plain", data, "--length", 24)["loss"]) > 0.01
    flat = {"base": str(base.directory), "data.name": "files", "train.compute": "float32", "train.sequence_length": 24}
    device = Device(RunConfig.from_flat(flat, "test"), {"data-path": str(data)})
    parts = [device.measure(part, adapter) for part in ("train", "held_out")]
    assert found["loss"] == pytest.approx(sum(part.loss * part.tokens for part in parts) / 40, rel=1e-5)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_a_head_is_the_same_in_every_form_and_in_both_runtimes_for_any_labels(labels: int, tmp_path: Path) -> None:
    base = encoder_pack("bert")
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY)
    adapter = for_labels(base, labels)
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    export_peft(tmp_path / "adapter", tmp_path / "a.onnx_adapter", base)
    lines = [{**record, "label": number % labels} for number, record in enumerate(records(30))]
    data = written(tmp_path / "data.jsonl", lines)
    found = [
        told(base.directory, tmp_path / place, data, "--length", 24, *graph)
        for place in ("adapter", "a.onnx_adapter")
        for graph in ((), ("--graph", tmp_path / "graph"))
    ]
    for other in found[1:]:
        same(other, found[0])
    classes = classified(base, adapter, [line["text"] for line in lines])
    assert found[0]["accuracy"] == pytest.approx(float(np.mean(classes == np.arange(30) % labels)))
    with pytest.raises(DataError, match=rf"example 1: label {labels} is none of the model's {labels}"):
        wrong = written(tmp_path / "wrong.jsonl", [{"text": "so so", "label": labels}])
        said(base.directory, tmp_path / "adapter", wrong, "--length", 24)


def classified(base: BasePack, adapter: Adapter, texts: list[str]) -> NDArray[np.int64]:
    """The label of each text, read by itself."""
    tokenizer, found = open_tokenizer(base.directory), []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        found.append(int(logits(base, ids, adapter, np.ones_like(ids))[0].argmax()))
    return np.array(found)


def test_answers_are_generated_alike_in_both_runtimes(base: BasePack, tmp_path: Path) -> None:
    export_base(base, tmp_path / "graph", accuracy_level=FLOAT_ACCURACY)
    directory = saved(base, tmp_path / "adapter")
    data = written(tmp_path / "data.jsonl", [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(3)])
    words = (
        base.directory, directory, data, "--answers", "--max-tokens", 6, "--prompt", r"Q: {prompt}\nA:",
        "--set", "data.fields.prompt=question", "--set", "data.fields.completion=answer",
    )  # fmt: skip
    found = told(*words)
    assert found["answers"] == 3
    assert found["exact_match_strict"] == 0.0
    same(told(*words, "--graph", tmp_path / "graph"), found)


def test_of_a_folder_the_test_set_is_measured(base: BasePack, tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        written(tmp_path / f"{name}.jsonl", [{"text": f"{name} {number}"} for number in range(4)])
    assert told(base.directory, tmp_path)["files"] == ["test.jsonl"]
    (tmp_path / "test.jsonl").unlink()
    assert told(base.directory, tmp_path, "--limit", 2)["examples"] == 2
    (tmp_path / "valid.jsonl").unlink()
    with pytest.raises(DataError, match="its files are called train"):
        said(base.directory, tmp_path)
    assert told(base.directory, tmp_path / "train.jsonl")["examples"] == 4


def test_the_table_is_for_people(base: BasePack, questions: Path) -> None:
    table = said(base.directory, questions, "--limit", 5)
    for words in ("the base alone: 5 examples", "torch", "loss, nats per token", "acc_norm", "the first 5 of 14"):
        assert words in table


def test_what_cannot_be_measured_is_told(base: BasePack, packs: Packs, questions: Path, tmp_path: Path) -> None:
    other = packs(VARIANTS["8-bit-asymmetric-tied-mha-head8"])
    export_base(other, tmp_path / "graph")
    run = committed_run(tmp_path / "run", base)
    adapter = saved(base, tmp_path / "adapter")
    encoder = encoder_pack("bert")
    one = PeftDirectory(adapter=for_labels(encoder, 1), base_fingerprint=encoder.fingerprint)
    write_peft(tmp_path / "one", one)
    for words, kind, message in (
        (
            (encoder.directory, tmp_path / "one", written(tmp_path / "l.jsonl", records(3))),
            ConfigError,
            "of regression",
        ),
        (
            (base.directory, questions, "--graph", tmp_path / "graph"),
            GraphError,
            "the graph of base .*; export this one",
        ),
        ((other.directory, adapter, questions), AdapterError, "the adapter is for another base"),
        ((base.directory, run, questions, "--round", 3), ConfigError, "no round 3; it has committed 1 to 2: name"),
        ((base.directory, adapter, questions, "--round", 1), ConfigError, "is no run"),
        ((base.directory, questions, "--round", 1), ConfigError, "there is no ADAPTER"),
        ((base.directory, questions, "--answers"), DataError, "14 of 14 examples have no prompt with a completion"),
        ((base.directory, questions, "--prompt", "Q:"), ConfigError, "expected a text with {prompt}"),
        ((base.directory, questions, "--set", "train.lr=1"), ConfigError, "takes names of fields only"),
        ((base.directory, tmp_path / "qestions.jsonl"), ConfigError, "did you mean .*questions"),
        (
            (encoder.directory, written(tmp_path / "l.jsonl", records(3)), "--answers"),
            ConfigError,
            "an encoder",
        ),
    ):
        with pytest.raises(kind, match=message):
            said(*words)
