"""What tools/screening computes on an encoder's last block is what the whole encoder computes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import LoraSection
from fedlora.data.examples import Labelled
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.ops.compute import choose_compute

from tests.tiny.encoders import LABELS, encoder_pack, shape_of

SCREENING = Path(__file__).resolve().parents[3] / "tools" / "screening"
TEXTS = [("warm", 0), ("a dull and grim old one", 1), ("two", 2), ("red and good and kind", 0)]


@pytest.fixture
def last_block(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCREENING)
    return importlib.import_module("last_block").LastBlock


def adapter_of(base: BasePack) -> Adapter:
    """On what the screening trains."""
    modules = shape_of(base).linear_modules()
    config = LoraSection(rank=2, layers=("-1",), target_modules=("query", "dense")).lora(modules)
    draw = torch.Generator().manual_seed(3)
    return Adapter(
        config,
        {
            module: LoraPair(
                torch.randn(2, modules[module][1], generator=draw).numpy(),
                torch.randn(modules[module][0], 2, generator=draw).numpy(),
            )
            for module in config.targets(modules)
        },
    )


def test_losses_scores_and_gradients_are_those_of_the_whole_encoder(last_block: Any) -> None:
    base, compute = encoder_pack("bert"), choose_compute("float32", "auto", "cpu")
    found = []
    for encoder in (Encoder(base, compute), last_block(base, compute)):
        examples = [Labelled(text=text, label=LABELS[label]) for text, label in TEXTS]
        windows, lora = encoder.windows(examples, 24, "here"), encoder.lora(adapter_of(base))
        scale = torch.full(windows.targets.shape, 0.25)
        shift = encoder.score_shift(windows, 1.0)
        assert shift is not None
        losses = encoder.add_gradients(
            windows.inputs, windows.targets, windows.starts, scale, lora, encoder.workspace(),
            shift=shift.expand(len(windows), -1),
        )  # fmt: skip
        scores = encoder.logits(windows.inputs, lora, windows.starts)
        found.append([losses, scores, *(part for pair in lora.gradients().values() for part in pair)])
    for mine, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert theirs.any()
