"""Train adapters on a device's windows, and measure one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fedlora.config.run import TrainConfig
from fedlora.errors import ConfigError, RunError
from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet

from fedlora_client.data.windows import Windows
from fedlora_client.layers.step_plan import StepPlan
from fedlora_client.model import Model
from fedlora_client.ops.compute import Compute
from fedlora_client.training.memory import resident_bytes
from fedlora_client.training.planning import plan_training
from fedlora_client.training.training import Span, Training
from fedlora_client.training.training_state import Progress, identity_of, plan_of_state, restore_state, write_state

log = logging.getLogger("fedlora.client")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What one stretch of training gave."""

    adapter: Adapter  # where it was evaluated: the one with the least loss
    losses: tuple[float, ...]  # nats per token, of an encoder per text; one per step
    tokens: int  # that were learned; of an encoder, the labels
    evaluations: tuple[tuple[int, float], ...] = ()  # (steps done, held-out loss)
    step_seconds: tuple[float, ...] = ()  # of each step that was done now, not before it was stopped
    step_cpu_seconds: tuple[float, ...] = ()  # of the process's processor time, during the same
    resident: tuple[int, ...] = ()  # bytes of the process after each of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Measure while training, keep the best, and stop when it gets no better."""

    windows: Windows  # held out
    every: int  # steps; and before the first, and after the last
    patience: int = 0  # evaluations in a row that are no better, after which the training ends; 0: it never does

    def is_over(self, evaluations: Sequence[tuple[int, float]]) -> bool:
        losses = [loss for _, loss in evaluations]
        return bool(self.patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= self.patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Where the state of a training is kept while it runs, and how often it is written."""

    file: Path
    every: int = 20  # steps
    discards: bool = False  # the state of another training that is found there, instead of refusing to train
    keeps: bool = False  # the last state, for a caller who removes it when the result is safe


@dataclass(frozen=True, slots=True, kw_only=True)
class Watcher:
    """Who is told how a training goes."""

    on_plan: Callable[[StepPlan], None] = lambda plan: None
    on_step: Callable[[int, float], None] = lambda step, loss: None  # step from 0, nats per token
    on_evaluation: Callable[[int, float], None] = lambda steps, loss: None


def train(
    model: Model,
    adapter: Adapter,
    windows: Windows,
    config: TrainConfig,
    generator: np.random.Generator,  # orders the windows
    watcher: Watcher = Watcher(),
    *,
    span: Span | None = None,
    saving: Saving | None = None,
    evaluation: Evaluation | None = None,
    trains: FactorSet = "AB",
    frozen: Adapter | None = None,  # of the same modules, that stands frozen beside `adapter`
) -> TrainResult:
    """Return `adapter` after `config.steps` steps of AdamW on those of A and B that are in `trains`, and its extra tensors.

    With `saving`, a training that finds its own state goes on from it, with the result, bit for bit, of one that was
    never stopped; the state is removed at the end. Raises DataError where the loss is not finite, ConfigError where
    memory does not suffice or the state is another training's.
    """
    measured = [evaluation.windows] if evaluation else []
    plan = plan_training(model, [adapter], config, trains, frozen, [windows, *measured])
    span = span or Span(0, config.steps)
    identity = identity_of(model, adapter, windows, config, generator, span, trains, frozen) if saving else ""
    if saving and saving.file.exists():
        plan = _resumed_plan(saving, identity, plan, model.compute)
    watcher.on_plan(plan)
    training = Training(model, [adapter], [windows], config, [generator], plan, span, trains, frozen)
    del adapter, frozen  # where the caller does not hold them, their memory is free from here
    progress, step_seconds, step_cpu_seconds, resident = Progress(), list[float](), list[float](), list[int]()
    if saving and saving.file.exists():
        progress = restore_state(saving.file, training)
    if evaluation and not progress.evaluations:
        _evaluate(evaluation, training, progress)
        watcher.on_evaluation(*progress.evaluations[-1])
    while training.step < config.steps and not (evaluation and evaluation.is_over(progress.evaluations)):
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            (step,) = training.run_step()
        except RunError:  # nobody waits any more: whoever asks again gets what was done
            if saving and training.step:
                _save(saving, identity, training, progress)
            raise
        step_seconds.append(time.perf_counter() - began)
        step_cpu_seconds.append(time.process_time() - cpu_began)
        resident.append(resident_bytes())
        progress.losses.append(step.loss)
        progress.tokens += step.tokens
        watcher.on_step(training.step - 1, step.loss)
        is_last = training.step == config.steps
        if evaluation and (is_last or training.step % evaluation.every == 0):
            _evaluate(evaluation, training, progress)
            watcher.on_evaluation(*progress.evaluations[-1])
        # After the last step it would be removed at once: three times an adapter to a board's flash, each round.
        if saving and (saving.keeps if is_last else training.step % saving.every == 0):
            _save(saving, identity, training, progress)
    if saving and not saving.keeps:
        saving.file.unlink(missing_ok=True)
    lora = training.finish()
    if progress.best:
        for name, flat in lora.flats.items():
            flat.value.copy_(progress.best[name])
    return TrainResult(
        adapter=lora.adapter(),
        losses=tuple(progress.losses),
        tokens=progress.tokens,
        evaluations=tuple(progress.evaluations),
        step_seconds=tuple(step_seconds),
        step_cpu_seconds=tuple(step_cpu_seconds),
        resident=tuple(resident),
    )


def _resumed_plan(saving: Saving, identity: str, plan: StepPlan, compute: Compute) -> StepPlan:
    """The plan of the state that is there; without it where it is not this training's, and that is no error."""
    try:
        return plan_of_state(saving.file, identity, plan, compute)
    except ConfigError as error:
        if not saving.discards:
            raise
        log.warning("%s: it is removed", error)
        saving.file.unlink()
        return plan


def _save(saving: Saving, identity: str, training: Training, progress: Progress) -> None:
    """Write the state; a full disk is no reason to lose what memory holds."""
    try:
        write_state(saving.file, identity, training, progress)
    except (OSError, ConfigError) as error:
        log.warning("%s: the state after step %d was not saved: %s", saving.file, training.step, error)


def _evaluate(evaluation: Evaluation, training: Training, progress: Progress) -> None:
    loss = training.loss_on(evaluation.windows)
    if all(loss < earlier for _, earlier in progress.evaluations):
        progress.best = {name: flat.value.clone() for name, flat in training.lora.flats.items()}
    progress.evaluations.append((training.step, loss))
