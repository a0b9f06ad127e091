"""Measure an adapter on windows: its loss, and, where texts have labels, how many of each it tells right."""

# M windows

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from fedlora.family import EncoderShape, ModelShape
from fedlora.lora.adapter import Adapter
from fedlora.wire.choice_counts import ChoiceCounts
from fedlora.wire.label_counts import LabelCounts
from numpy.typing import NDArray

from fedlora_client.data.by_length import parts_by_length
from fedlora_client.data.windows import Windows, parts
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.layers.virtual_tokens import longest
from fedlora_client.model import Model
from fedlora_client.ops.workspace import Workspace
from fedlora_client.training.wanted import check_wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an adapter is like on some windows."""

    loss: float  # mean nats per token, of an encoder per text
    tokens: int  # of an encoder, texts
    labels: LabelCounts | None = None  # of an encoder alone
    choices: ChoiceCounts | None = None  # of a decoder, where there are questions of multiple choice

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy and its like; none of a decoder."""
        return self.labels.scores() if self.labels else {}


@dataclass(frozen=True, slots=True)
class Scored:
    """M windows one by one."""

    nats: NDArray[np.float64]  # [M], the sum over what is learned in each
    labels: NDArray[np.int64] | None = None  # [M], that an encoder gives each text

    def measured(self, windows: Windows, shape: ModelShape) -> Measured:
        """All of them together."""
        counts, tokens = None, windows.learned_tokens
        if self.labels is not None and isinstance(shape, EncoderShape):
            counts = LabelCounts.of(windows.targets[:, 0].numpy(), self.labels, len(shape.labels))
        return Measured(loss=float(self.nats.sum()) / tokens, tokens=tokens, labels=counts)


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
    micro_batch, memory_plan = model.cut_measurement(length_with(lora, windows), frugal=bool(memory_mb))
    return measured_with(model, lora, windows, model.workspace(), micro_batch, memory_plan)


def length_with(lora: LoraTensors | None, windows: Windows) -> int:
    """The most tokens of a window, virtual ones among them."""
    return longest(windows, lora.virtual.count if lora is not None and lora.virtual else 0)


def measured_with(
    model: Model,
    lora: LoraTensors | None,
    windows: Windows,
    space: Workspace,
    micro_batch: int,
    memory_plan: MemoryPlan,
) -> Measured:
    """All windows, `micro_batch` of them at a time, or as many texts as are no more tokens."""
    return scored_with(model, lora, windows, space, micro_batch, memory_plan).measured(windows, model.shape)


def scored_with(
    model: Model,
    lora: LoraTensors | None,
    windows: Windows,
    space: Workspace,
    micro_batch: int,
    memory_plan: MemoryPlan,
) -> Scored:
    """Each of the windows, as `measured_with` takes them."""
    nats = np.zeros(len(windows.inputs))
    predicted = np.zeros(len(nats), np.int64) if isinstance(model.shape, EncoderShape) else None
    for rows, part in _parts(model, windows, micro_batch):
        check_wanted()
        losses, labels = model.losses_and_labels(part, lora, space, memory_plan)
        nats[rows] = losses.double().sum(1).cpu().numpy()
        if predicted is not None and labels is not None:
            predicted[rows] = labels.cpu().numpy()
    return Scored(nats, predicted)


def _parts(model: Model, windows: Windows, micro_batch: int) -> Iterator[tuple[slice | NDArray[np.int64], Windows]]:
    """The windows a part at a time, each with its place among all."""
    if isinstance(model.shape, EncoderShape):
        for rows in parts_by_length(windows, micro_batch * windows.inputs.shape[1]):
            yield rows.numpy(), windows.batch(rows)
        return
    begin = 0
    for (part,) in parts([windows], micro_batch):
        yield slice(begin, begin + len(part.inputs)), part
        begin += len(part.inputs)
