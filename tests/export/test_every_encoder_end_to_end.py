"""Each encoder from a checkpoint to labels: packed, trained on labelled texts, exported; both engines score alike."""

# S texts, T tokens of the longest, L labels

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.exported.profiles import PROFILES, Profile, graph_name
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora_client.device import Device
from fedlora_client.reference import logits as torch_scores
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.checks.graph_runs import run_graph
from fedlora_export.export import export_base
from fedlora_serve.adapters.loading import load_adapter
from numpy.typing import NDArray

from tests.export.graph_runs import open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle, peft_encoder
from tests.tiny.encoders import ENCODERS, LABELS, save_encoder_pack

WORDS = (("rain", "mud", "fog"), ("sun", "calm", "blue"), ("road", "map", "mile"))  # of each label


class Trained(NamedTuple):
    """An exported base, an adapter that was trained on it, its file, and the texts that it was trained on."""

    name: str
    base: BasePack
    adapter: Adapter
    file: Path
    tokens: NDArray[np.int64]  # [S, T]
    mask: NDArray[np.int64]  # [S, T]
    labels: NDArray[np.int64]  # [S]


def labelled_texts(path: Path) -> Path:
    """30 texts of one to four words."""
    generator, lines = np.random.default_rng(0), []
    for number in range(30):
        label = number % len(LABELS)
        words = generator.choice(WORDS[label], 1 + number % 4)
        lines.append(json.dumps({"text": " ".join(words), "label": LABELS[label]}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=ENCODERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    pack = save_encoder_pack(request.param, folder / "pack")
    export_base(pack, folder / "model", profiles=PROFILES, accuracy_level=FLOAT_ACCURACY)
    base = open_pack(folder / "model")
    config = RunConfig(
        base=str(base.directory),
        data=DataConfig(name="files"),
        lora=LoraSection(rank=4, alpha=8.0, modules_to_save=()),  # profiles of rows take no head: test_heads.py
        train=TrainConfig(steps=25, batch_size=8, sequence_length=24, lr=0.01, compute="float32", device="cpu"),
        server=ServerConfig(rounds=1),
    )
    device = Device(config, {"data-path": str(labelled_texts(folder / "notes.jsonl"))})
    result = device.train(device.first_adapter(), 1)
    assert np.mean(result.losses[-3:]) < 0.5 * np.mean(result.losses[:3])
    write_onnx_adapter(result.adapter, base.fingerprint, folder / "trained.onnx_adapter")
    windows = device.train_windows()
    mask = (windows.starts == 0).long().numpy()  # a token of padding begins a text of its own
    assert mask.sum(1).min() < mask.sum(1).max() < windows.inputs.shape[1]
    labels = windows.targets[:, 0].numpy()
    return Trained(
        request.param, base, result.adapter, folder / "trained.onnx_adapter", windows.inputs.numpy(), mask, labels
    )


def graph_scores(trained: Trained, file: Path | None) -> NDArray[np.float32]:  # [S, L]
    """What ONNX Runtime gives, with the values of an adapter file."""
    session = open_session(trained.base.directory / graph_name(trained.base.model, "compat"))
    adapter_inputs = load_adapter(file, trained.base).inputs if file else {}
    scores: NDArray[np.float32]
    (scores,) = session.run(None, {"input_ids": trained.tokens, "attention_mask": trained.mask, **adapter_inputs})
    return scores


def share_of_right_labels(trained: Trained, scores: NDArray[np.float32]) -> float:
    return float((scores.argmax(1) == trained.labels).mean())


def test_torch_and_onnxruntime_give_the_same_scores(trained: Trained) -> None:
    plain, adapted = graph_scores(trained, None), graph_scores(trained, trained.file)
    assert_close(plain, torch_scores(trained.base, trained.tokens, None, trained.mask))
    assert_close(adapted, torch_scores(trained.base, trained.tokens, trained.adapter, trained.mask))
    assert np.abs(adapted - plain).max() > 0.1


def test_the_scores_are_those_of_transformers_and_of_peft(trained: Trained) -> None:
    given = [torch.from_numpy(part) for part in (trained.tokens, trained.mask)]
    model, _ = peft_encoder(trained.base, trained.adapter)
    with torch.no_grad():
        plain, adapted = oracle(trained.base)(*given).logits, model(*given).logits
    assert_close(graph_scores(trained, None), plain)
    assert_close(graph_scores(trained, trained.file), adapted)


def test_the_exported_base_tells_with_the_adapter_what_it_was_taught(trained: Trained) -> None:
    assert share_of_right_labels(trained, graph_scores(trained, trained.file)) > 0.9
    assert share_of_right_labels(trained, graph_scores(trained, None)) < 0.7


@pytest.mark.parametrize("profile", ["fast", "rows", "kernel"])
def test_every_profile_that_takes_an_adapter_gives_the_same_scores(trained: Trained, profile: Profile) -> None:
    session = open_session(trained.base.directory / graph_name(trained.base.model, profile))
    adapters = [trained.adapter] * len(trained.tokens)
    got, _ = run_graph(session, trained.base, profile, trained.tokens, trained.mask, adapters)
    assert_close(got[:, 0], graph_scores(trained, trained.file))
