"""Train an adapter on a device's windows, and measure one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from fedlora.adapter import Adapter
from fedlora.errors import DataError
from fedlora.run_config import TrainConfig

from fedlora_client.decoder import Decoder
from fedlora_client.lora import LoraTensors
from fedlora_client.windows import IGNORED, Windows

_EVALUATION_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What one stretch of training gave."""

    adapter: Adapter
    losses: tuple[float, ...]  # nats per token, one per step
    tokens: int  # that were trained on


def train(
    decoder: Decoder,
    adapter: Adapter,
    windows: Windows,
    config: TrainConfig,
    generator: np.random.Generator,  # orders the windows
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainResult:
    """Return `adapter` after `config.steps` steps of AdamW on A and B. Raises DataError where the loss is not finite."""
    lora = LoraTensors.of(adapter, trainable=True)
    parameters = lora.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    losses: list[float] = []
    tokens = 0
    for step, rows in enumerate(_batches(len(windows), config, generator)):
        targets = windows.targets[rows].flatten()
        logits = decoder.logits(windows.inputs[rows], lora)
        loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DataError(f"step {step + 1}: the loss is {losses[-1]}; lower train.lr ({config.lr})")
        loss.backward()  # type: ignore[no-untyped-call]
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int((targets != IGNORED).sum())
        on_step(step, losses[-1])
    return TrainResult(adapter=lora.adapter(), losses=tuple(losses), tokens=tokens)


@torch.no_grad()
def evaluate(decoder: Decoder, adapter: Adapter | None, windows: Windows) -> tuple[float, int]:
    """(mean nats per token, tokens) over all windows; adapter None measures the base."""
    lora = None if adapter is None else LoraTensors.of(adapter)
    total, tokens = 0.0, 0
    for start in range(0, len(windows), _EVALUATION_BATCH):
        rows = slice(start, start + _EVALUATION_BATCH)
        logits, targets = decoder.logits(windows.inputs[rows], lora), windows.targets[rows]
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum").item()
        tokens += int((targets != IGNORED).sum())
    return total / tokens, tokens


def _batches(count: int, config: TrainConfig, generator: np.random.Generator) -> Iterator[torch.Tensor]:
    """`config.steps` batches of window numbers: one shuffled pass after another, cut into batches."""
    order: list[int] = []
    for _ in range(config.steps):
        while len(order) < config.batch_size:
            order += generator.permutation(count).tolist()
        yield torch.tensor(order[: config.batch_size])
        del order[: config.batch_size]
