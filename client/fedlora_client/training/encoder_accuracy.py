"""How often an encoder's highest score is that of the right label."""

from __future__ import annotations

from fedlora.lora.adapter import Adapter

from fedlora_client.data.windows import Windows, parts
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.training.planning import cut_measurement


def accuracy(
    encoder: Encoder, adapter: Adapter | None, windows: Windows, *, memory_mb: int = 0, frozen: Adapter | None = None
) -> float:
    """The share of the texts, which all have a label, that are told right.

    adapter None measures the base, `memory_mb` is a bound or 0: with it the texts come as in `evaluate`.
    """
    lora = None if adapter is None else encoder.lora(adapter, frozen=frozen)
    texts, _ = cut_measurement(encoder, windows.inputs.shape[1], frugal=bool(memory_mb))
    right = 0
    for (part,) in parts([windows], texts):
        scores = encoder.logits(part.inputs, lora, part.starts)
        right += int((scores.argmax(1).cpu() == part.targets[:, 0]).sum())
    return right / len(windows)
