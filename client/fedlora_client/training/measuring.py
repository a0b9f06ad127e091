"""Measure an adapter on windows: its loss, and, where texts have labels, how many of each it tells right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from fedlora.family import EncoderShape
from fedlora.lora.adapter import Adapter
from fedlora.wire.label_counts import LabelCounts
from numpy.typing import NDArray

from fedlora_client.data.by_length import parts_by_length
from fedlora_client.data.windows import Windows, parts
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.model import Model
from fedlora_client.ops.workspace import Workspace
from fedlora_client.training.wanted import check_wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an adapter is like on some windows."""

    loss: float  # mean nats per token, of an encoder per text
    tokens: int  # of an encoder, texts
    labels: LabelCounts | None = None  # of an encoder alone

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy and its like; none of a decoder."""
        return self.labels.scores() if self.labels else {}


def evaluate(
    model: Model, adapter: Adapter | None, windows: Windows, *, memory_mb: int = 0, frozen: Adapter | None = None
) -> tuple[float, int]:
    """(mean nats per token, tokens) of all windows; adapter None measures the base, `memory_mb` is a bound or 0."""
    measured = measure(model, adapter, windows, memory_mb=memory_mb, frozen=frozen)
    return measured.loss, measured.tokens


def measure(
    model: Model, adapter: Adapter | None, windows: Windows, *, memory_mb: int = 0, frozen: Adapter | None = None
) -> Measured:
    """`evaluate`, with what the labels of the windows' texts tell."""
    lora = None if adapter is None else model.lora(adapter, frozen=frozen)
    micro_batch, memory_plan = model.cut_measurement(windows.inputs.shape[1], frugal=bool(memory_mb))
    return measured_with(model, lora, windows, model.workspace(), micro_batch, memory_plan)


def measured_with(
    model: Model,
    lora: LoraTensors | None,
    windows: Windows,
    space: Workspace,
    micro_batch: int,
    memory_plan: MemoryPlan,
) -> Measured:
    """All windows, `micro_batch` of them at a time, or as many texts as are no more tokens."""
    total, tokens = 0.0, 0
    actual: list[NDArray[np.int64]] = []
    predicted: list[NDArray[np.int64]] = []
    for part in _parts(model, windows, micro_batch):
        check_wanted()
        losses, labels = model.losses_and_labels(part, lora, space, memory_plan)
        total += float(losses.double().sum())
        tokens += part.learned_tokens
        if labels is not None:
            actual.append(part.targets[:, 0].numpy())
            predicted.append(labels.cpu().numpy())
    counts = None
    if predicted and isinstance(model.shape, EncoderShape):
        counts = LabelCounts.of(np.concatenate(actual), np.concatenate(predicted), len(model.shape.labels))
    return Measured(loss=total / tokens, tokens=tokens, labels=counts)


def _parts(model: Model, windows: Windows, micro_batch: int) -> Iterator[Windows]:
    if not isinstance(model.shape, EncoderShape):
        yield from (part for (part,) in parts([windows], micro_batch))
        return
    for rows in parts_by_length(windows, micro_batch * windows.inputs.shape[1]):
        yield windows.batch(rows)
