"""Several adapters in one pass through the base: a lever for a GPU, and the meaning of `train` for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedlora.config.run import TrainConfig
from fedlora.lora.adapter import Adapter

from fedlora_client.data.windows import Windows
from fedlora_client.model import Model
from fedlora_client.training.planning import plan_training
from fedlora_client.training.trainer import TrainResult
from fedlora_client.training.training import Span, Training


def train_stack(
    model: Model,
    adapters: Sequence[Adapter],
    windows: Sequence[Windows],
    config: TrainConfig,
    generators: Sequence[np.random.Generator],
) -> list[TrainResult]:
    """What `train` gives for each adapter, in one pass through the base for all: a lever for a GPU."""
    plan = plan_training(model, adapters, config, windows=windows)
    training = Training(model, adapters, windows, config, generators, plan, Span(0, config.steps))
    steps = [training.run_step() for _ in range(config.steps)]
    return [
        TrainResult(
            adapter=training.lora.adapter(number),
            losses=tuple(step[number].loss for step in steps),
            tokens=sum(step[number].tokens for step in steps),
        )
        for number in range(len(adapters))
    ]
