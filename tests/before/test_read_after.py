"""Files that an earlier version wrote (README.md beside this) are read, resumed and run by today's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fedlora import Adapter, decode_update, open_pack, read_peft
from fedlora.cli import commands
from fedlora.files.tensor_file import TensorFile
from fedlora_serve.local.engine import Engine
from fedlora_server.run.run_directory import last_round, read_metrics
from numpy.typing import NDArray

from tests.reference.tolerances import TOLERANCE

BEFORE = Path(__file__).parent
FINGERPRINT = "e00377962d7abdddd2bc2d3e98db9c06df541c56c0dd5392607d8fb15252ac10"
WEIGHTS = "adapter_model.safetensors"
RUNS = ("svd", "stack", "fedadam", "fedsa")
TRAINING = {
    "lora.alpha": 4, "train.batch_size": 2, "train.sequence_length": 16, "train.dropout": 0.1,
    "train.compute": "float32", "train.kernels": "off", "train.device": "cpu",
}  # fmt: skip
# Of the largest value: AdamW divides by what may be small, so processors that add in another order drift apart.
TRAINED = 10 * TOLERANCE["float32"]["rtol"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, and the working directory: the configurations in them name `base` and `data`."""
    copy = tmp_path / "before"
    shutil.copytree(BEFORE, copy)
    monkeypatch.chdir(copy)
    return copy


def fedlora(*arguments: object) -> str:
    """The standard output of a command. Raises what the command raises."""
    result = CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def tensors_of(file: Path) -> dict[str, NDArray[Any]]:
    content = TensorFile(file)
    return {name: content.array(name) for name in content.entries}


def assert_close_tensors(got: Path, expected: Path) -> None:
    """As close as two processors are: what differs is the order of sums, over three rounds of training."""
    left, right = tensors_of(got), tensors_of(expected)
    assert left.keys() == right.keys()
    for name, value in right.items():
        assert left[name].shape == value.shape
        np.testing.assert_allclose(left[name], value, rtol=0, atol=TRAINED * float(np.abs(value).max()), err_msg=name)


def assert_close_products(got: Path, expected: Path) -> None:
    """The same of the products B A: the order of sums decides where a component stands, and with which sign."""
    left, right = tensors_of(got), tensors_of(expected)
    assert {name: value.shape for name, value in left.items()} == {name: value.shape for name, value in right.items()}
    for name in [name for name in right if "lora_A" in name]:
        product, wanted = (each[name.replace("lora_A", "lora_B")] @ each[name] for each in (left, right))
        atol = 2 * TRAINED * float(np.abs(wanted).max())
        np.testing.assert_allclose(product, wanted, rtol=0, atol=atol, err_msg=name)


def test_a_pack_has_the_fingerprint_that_it_had() -> None:
    base = open_pack(BEFORE / "base")
    assert base.fingerprint == FINGERPRINT
    assert base.source == "base-checkpoint"


def test_an_adapter_is_read_with_its_base_and_its_configuration() -> None:
    content = read_peft(BEFORE / "trained")
    assert content.base_fingerprint == FINGERPRINT
    adapter = content.adapter
    assert (adapter.config.rank, adapter.config.alpha, len(adapter.pairs)) == (2, 4, 7)
    stored = tensors_of(BEFORE / "trained" / WEIGHTS)
    assert len(stored) == 14
    for module, pair in adapter.pairs.items():
        for factor in ("lora_A", "lora_B"):
            assert np.array_equal(getattr(pair, factor), stored[f"base_model.model.{module}.{factor}.weight"])


@pytest.mark.parametrize(("codec", "tolerance"), [("f32", 0.0), ("f16", 1e-3)])
def test_an_update_is_decoded(codec: str, tolerance: float) -> None:
    update = decode_update((BEFORE / f"update.{codec}").read_bytes())
    assert (update.run, update.server_round, update.base_fingerprint) == ("before", 3, FINGERPRINT)
    assert (update.num_examples, update.metrics, update.task.keeps) == (7, {"loss": 1.5}, "B")
    expected = read_peft(BEFORE / "trained").adapter
    assert update.frozen is not None
    for got in (update.adapter, update.frozen):
        assert largest_difference(got, expected) <= tolerance


def largest_difference(got: Adapter, expected: Adapter) -> float:
    assert got.pairs.keys() == expected.pairs.keys()
    return max(
        float(np.abs(getattr(got.pairs[module], factor) - getattr(pair, factor)).max())
        for module, pair in expected.pairs.items()
        for factor in ("lora_A", "lora_B")
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_as_its_own_version_would_have(folder: Path, name: str) -> None:
    run = folder / "federated" / name
    assert last_round(run) == 2
    fedlora("resume", run, "--workers", "1", "--set", "server.rounds=3")
    assert last_round(run) == 3
    assert_close_products(
        run / "rounds" / "0003" / "adapter" / WEIGHTS, BEFORE / "expected/federated" / f"{name}.safetensors"
    )
    expected = json.loads((BEFORE / "expected/federated" / f"{name}.json").read_text())
    got: dict[str, Any] = dict(read_metrics(run)[-1])
    assert got.keys() >= expected.keys()  # what a round tells has become more since
    for key in ("loss", "train_loss"):
        assert got[key] == pytest.approx(expected[key], rel=TRAINED)
    for key in ("round", "devices", "replies", "excluded", "bytes_down", "bytes_up"):
        assert got[key] == expected[key]


def test_a_training_that_was_stopped_goes_on_as_its_own_version_would_have(folder: Path) -> None:
    assert not (folder / "stopped").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a state is computed on with as many threads as it was
    try:
        fedlora(
            "train", "data/0/text.txt", "-o", "stopped", "--base", "base", "--steps", 6, "--rank", 2, "--lr", 0.01,
            "--evaluate-every", 2, "--save-every", 2, "--resume",
            *(word for key, value in TRAINING.items() for word in ("--set", f"{key}={value}")),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert not (folder / ".stopped.training").exists()
    assert_close_tensors(folder / "stopped" / WEIGHTS, BEFORE / "trained" / WEIGHTS)
    got, expected = (json.loads(Path(at, "training.json").read_text()) for at in ("stopped", BEFORE / "trained"))
    assert got.keys() >= expected.keys()  # what a round tells has become more since


def test_an_exported_folder_is_sound() -> None:
    report = fedlora("verify", BEFORE / "exported")
    assert FINGERPRINT in report
    for graph in ("decoder.onnx", "decoder.fast.onnx", "decoder.rows.onnx", "decoder.kernel.onnx"):
        assert f"{graph}: digest and base as its manifest tells" in report
    assert "notes.onnx_adapter: profile compat, 7 modules of rank 2, finite" in report
    assert "notes.fast.onnx_adapter: profile fast, 7 modules of rank 2, finite" in report
    assert "all of them known" in report


@pytest.mark.parametrize("adapter", ["", "notes.onnx_adapter"])
def test_an_exported_folder_says_what_it_said(adapter: str) -> None:
    engine = Engine(BEFORE / "exported", threads=1)
    recorded = json.loads((BEFORE / "expected/tokens.json").read_text())
    decoding = engine.start(engine.load_adapter(BEFORE / "exported" / adapter) if adapter else None)
    tokens = []
    logits = decoding.step(recorded["prompt"])
    for _ in recorded[adapter]:
        tokens.append(int(logits.argmax()))
        logits = decoding.step(tokens[-1:])
    assert tokens == recorded[adapter]


def test_a_study_knows_what_ran_already(folder: Path) -> None:
    before = rows_of(folder / "study" / "table.md")
    assert len(before) > 10
    fedlora("study", "small.toml", "-o", "study", "--table")
    assert rows_of(folder / "study" / "table.md") == before


def rows_of(table: Path) -> list[str]:
    """Names and numbers; the sentences around them may be written anew."""
    return [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
