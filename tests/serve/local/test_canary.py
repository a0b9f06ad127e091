"""The canary of a release: the losses are torch's, the labels are torch's, and what cannot be tried is no pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.errors import ConfigError, FedloraError, ReleaseError
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.identity.keys import SigningKey
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.release.canary import Canary, CanaryText
from fedlora_client.reference import logits as torch_logits
from fedlora_export.export import export_base
from fedlora_serve.local.canary import text_loss, try_canary
from fedlora_serve.local.engine import Engine
from fedlora_serve.text.tokenizer import open_tokenizer, prompt_tokens

from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import encoder_pack, shape_of
from tests.tiny.releases import write_release

KEY = SigningKey.generate()
TEXT = "The kitchen is warm."


def adapter_of(base: BasePack, folder: Path) -> Path:
    write_peft(folder, PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    return folder


def test_the_loss_of_a_text_is_torch_s(engine: Engine, tmp_path: Path) -> None:
    tokens = prompt_tokens(engine.tokenizer, engine.base.shape, TEXT)
    row = np.array([tokens], np.int64)
    for given in (None, random_adapter(engine.base)):
        scores = torch.from_numpy(np.array(torch_logits(engine.base, row, given)[0, :-1]))
        expected = torch.nn.functional.cross_entropy(scores, torch.tensor(tokens[1:])).item()
        loaded = engine.load_adapter(adapter_of(engine.base, tmp_path / "a")) if given else None
        assert text_loss(engine, tokens, loaded) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="no loss"):
        text_loss(engine, tokens[:1], None)


def test_a_text_passes_up_to_its_largest_loss(engine: Engine, tmp_path: Path) -> None:
    adapter = adapter_of(engine.base, tmp_path / "a")
    tokens = prompt_tokens(engine.tokenizer, engine.base.shape, TEXT)
    loss = text_loss(engine, tokens, engine.load_adapter(adapter))
    limits = (loss + 1e-3, loss - 1e-3)
    canary = Canary(texts=tuple(CanaryText(text=TEXT, max_loss=limit) for limit in limits))
    assert [each.is_good for each in try_canary(canary, engine.base.directory, adapter)] == [True, False]
    long = Canary(texts=(CanaryText(text="a" * 3000, max_loss=99.0),))  # than the context
    [tried] = try_canary(long, engine.base.directory, adapter)
    assert not tried.is_good
    assert "context" in tried.told


def test_labels_are_those_that_torch_gives(tmp_path: Path) -> None:
    base = encoder_pack("bert")
    export_base(base, tmp_path / "model", accuracy_level=FLOAT_ACCURACY)
    adapter = random_adapter(base)
    folder = adapter_of(base, tmp_path / "a")
    texts = ["The kitchen is warm.", "cold", "and the cellar?"]
    tokenizer = open_tokenizer(base.directory)
    expected = []
    for text in texts:
        row = np.array([tokenizer.encode(text).ids], np.int64)
        expected.append(shape_of(base).labels[int(torch_logits(base, row, adapter)[0].argmax())])
    good = Canary(texts=tuple(CanaryText(text=text, label=label) for text, label in zip(texts, expected, strict=True)))
    assert all(each.is_good for each in try_canary(good, tmp_path / "model", folder))
    bad = Canary(texts=tuple(CanaryText(text=text, label="other") for text in texts))
    assert not any(each.is_good for each in try_canary(bad, tmp_path / "model", folder))
    with pytest.raises(ReleaseError, match="some with label only"):
        try_canary(Canary(texts=(CanaryText(text="x", max_loss=1.0),)), tmp_path / "model", folder)


def test_a_decoder_gives_no_labels(model: Path, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="some with loss only"):
        try_canary(Canary(texts=(CanaryText(text="x", label="y"),)), model, adapter_of(engine.base, tmp_path / "a"))


def canary(folder: Path, model: Path, *options: str) -> Result:
    arguments = ["canary", str(folder), "--model", str(model), "--trust", str(folder.parent / "release.pub"), *options]
    return CliRunner().invoke(commands, arguments)


def test_the_command_says_by_its_status_what_came_of_it(engine: Engine, model: Path, tmp_path: Path) -> None:
    KEY.public.write(tmp_path / "release.pub")
    for name, most, status in (("good", 99.0, 0), ("bad", 0.001, 3)):
        texts = (CanaryText(text=TEXT, max_loss=most),)
        write_release(tmp_path / name, engine.base, KEY, canary=Canary(texts=texts))
        done = canary(tmp_path / name, model)
        assert done.exit_code == status, done.output
        told = json.loads(canary(tmp_path / name, model, "--json").stdout)
        assert told["texts"][0]["is_good"] is (status == 0)
        assert "text as expected" in told["told"]


def test_a_release_without_a_canary_and_one_that_was_changed_are_not_tried(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    KEY.public.write(tmp_path / "release.pub")
    write_release(tmp_path / "r", engine.base, KEY)
    assert isinstance(canary(tmp_path / "r", model).exception, ReleaseError)
    (tmp_path / "own.json").write_text(json.dumps({"texts": [{"text": TEXT, "max_loss": 99}]}))
    assert canary(tmp_path / "r", model, "--canary", str(tmp_path / "own.json")).exit_code == 0
    (tmp_path / "r" / "adapter" / "adapter_config.json").write_text("{}")
    assert isinstance(canary(tmp_path / "r", model, "--canary", str(tmp_path / "own.json")).exception, FedloraError)
