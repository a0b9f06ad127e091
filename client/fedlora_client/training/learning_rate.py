"""How long a training is, and the learning rate of its steps, over all the rounds of a run."""

from __future__ import annotations

import math
from dataclasses import replace

from fedlora.config.run import TrainConfig


def with_epochs(config: TrainConfig, epochs: float, windows: int) -> TrainConfig:
    """`config` with the steps that pass over so many windows `epochs` times; as it is for 0."""
    return replace(config, steps=max(1, round(epochs * windows / config.batch_size))) if epochs else config


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """A linear warm-up over the first `warmup_steps`; then constant, or a line or a cosine to 0 after the last step."""
    if step < config.warmup_steps:
        return config.rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.rate
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    done = min(1.0, done)
    return config.rate * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
