"""How often an encoder's highest score is that of the right label."""

from __future__ import annotations

from fedlora.adapter import Adapter

from fedlora_client.encoder import Encoder
from fedlora_client.training import parts
from fedlora_client.windows import Windows


def accuracy(encoder: Encoder, adapter: Adapter | None, windows: Windows, *, side: Adapter | None = None) -> float:
    """The share of the texts, which all have a label, that are told right; adapter None measures the base."""
    lora = None if adapter is None else encoder.lora(adapter, side=side)
    right = 0
    for (part,) in parts([windows], max(1, encoder.compute.rows // windows.inputs.shape[1])):
        scores = encoder.logits(part.inputs, lora, part.starts)
        right += int((scores.argmax(1).cpu() == part.targets[:, 0]).sum())
    return right / len(windows)
