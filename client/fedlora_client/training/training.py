"""AdamW on what trains of one adapter or of a stack, a step at a time."""

# C adapters, S windows of a batch, T tokens of a window

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from fedlora.config.run import TrainConfig
from fedlora.errors import DataError
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import kind_of
from fedlora.wire.task import FactorSet
from numpy.typing import NDArray
from torch import Tensor

from fedlora_client.data.windows import Windows, parts
from fedlora_client.layers.dropout import SeededDropout
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import StepPlan
from fedlora_client.model import Model
from fedlora_client.training.adamw import AdamW
from fedlora_client.training.learning_rate import learning_rate
from fedlora_client.training.measuring import measured_with
from fedlora_client.training.memory import give_back_freed
from fedlora_client.training.wanted import check_wanted


@dataclass(frozen=True, slots=True)
class Span:
    """Which steps of a run a training is: those of one round, or all."""

    first_step: int
    total_steps: int


class Step(NamedTuple):
    """What a step of one adapter was."""

    loss: float  # nats per token, of an encoder per text
    tokens: int  # that were learned; of an encoder, the labels


class Training:
    """The state of a training: the values, the optimizer's moments, and the batches that are still to come.

    Each of the C adapters has its own windows and its own order of them; one pass through the base serves all.
    """

    def __init__(
        self,
        model: Model,
        adapters: Sequence[Adapter],
        windows: Sequence[Windows],
        config: TrainConfig,
        generators: Sequence[np.random.Generator],  # that order the windows
        plan: StepPlan,
        span: Span,
        trains: FactorSet = "AB",
        frozen: Adapter | None = None,  # that stands frozen beside a single adapter
    ) -> None:
        self.config = config = config.with_rate(model.base.model, kind_of(adapters[0]).name)
        self.plan, self.step = plan, 0
        self.lora = model.lora(*adapters, trains=trains, frozen=frozen)
        self.compute = model.compute
        self._model, self._span = model, span
        self._space = model.workspace()
        self._windows = tuple(windows)
        self._learned = [w.learned_in_each for w in windows]
        self._orders = [batches(len(w), config, g) for w, g in zip(windows, generators, strict=True)]
        self._shifts = [model.score_shift(w, config.label_prior) for w in windows]  # [L] each
        seeds = tuple(_dropout_seed(config, g) for g in generators)
        self._dropout = SeededDropout(config.dropout, seeds, model.compute)
        self._flats = list(self.lora.flats.values())
        self.optimizers = {
            name: AdamW(flat.value, flat.gradient, config.weight_decay) for name, flat in self.lora.flats.items()
        }
        self._starts = [[v.clone() for v in flat.values] for flat in self._flats] if config.fedprox_mu else []

    def skip(self, steps: int) -> None:
        """Pass over batches that were trained on before."""
        for _ in range(steps):
            for order in self._orders:
                next(order)
        self.step += steps

    def run_step(self) -> list[Step]:
        """One step of each adapter.

        Raises DataError where a loss or a gradient is not finite, RunError where nobody waits for this thread any more; the
        adapters are then those of the step before.
        """
        drawn = [next(order) for order in self._orders]
        counts = [max(1, int(learned[rows].sum())) for learned, rows in zip(self._learned, drawn, strict=True)]
        for flat in self._flats:
            flat.gradient.zero_()
        totals = torch.zeros(len(drawn), dtype=torch.float64)
        for number, part in enumerate(parts(self._windows, self.plan.micro_batch, drawn)):
            check_wanted()
            scale = torch.cat([torch.full(w.targets.shape, 1 / n) for w, n in zip(part, counts, strict=True)])
            losses = self._model.add_gradients(
                torch.cat([w.inputs for w in part]), torch.cat([w.targets for w in part]),
                torch.cat([w.starts for w in part]), scale, self.lora, self._space, self.plan.memory_plan,
                self._dropout.of(self._span.first_step + self.step, number), self._shift_of(part),
            )  # fmt: skip
            totals += losses.double().cpu().view(len(drawn), -1).sum(1)
        means = [total / count for total, count in zip(totals.tolist(), counts, strict=True)]
        wrong = [mean for mean in means if not math.isfinite(mean)]
        if wrong:
            raise DataError(f"step {self.step + 1}: the loss is {wrong[0]}; lower train.lr ({self.config.rate})")
        if self._starts:
            self._pull_back()
        self._clip_gradients()
        lr = learning_rate(self.config, self._span.first_step + self.step, self._span.total_steps)
        for name, optimizer in self.optimizers.items():
            optimizer.step(lr * self.config.lora_plus_ratio if name == "lora_B" else lr, self.step + 1)
        self.step += 1
        return [Step(mean, count) for mean, count in zip(means, counts, strict=True)]

    def finish(self) -> LoraTensors:
        """The values as they are; what else the training holds is let go."""
        self.optimizers, self._starts, self._space = {}, [], self._model.workspace()
        give_back_freed()
        return self.lora

    def loss_on(self, windows: Windows) -> float:
        """Mean nats per token of the present adapter, in no more memory than a step takes."""
        plan = self.plan
        return measured_with(self._model, self.lora, windows, self._space, plan.micro_batch, plan.memory_plan).loss

    def _shift_of(self, part: Sequence[Windows]) -> Tensor | None:
        """What is added to the scores of each text of a part [S, L]: that of the adapter whose text it is."""
        rows = [shift.expand(len(w), -1) for w, shift in zip(part, self._shifts, strict=True) if shift is not None]
        return torch.cat(rows) if rows else None

    def _pull_back(self) -> None:
        """gradient += mu (value - value at the start): that of FedProx's mu / 2 ||value - start||^2 (arXiv:1812.06127)"""
        for flat, starts in zip(self._flats, self._starts, strict=True):
            for gradient, value, start in zip(flat.gradients, flat.values, starts, strict=True):
                gradient.add_(value - start, alpha=self.config.fedprox_mu)

    def _clip_gradients(self) -> None:
        """Scale each adapter's gradient down to the norm `max_grad_norm`. Raises DataError where one is not finite."""
        gradients = [gradient for flat in self._flats for gradient in flat.gradients]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        if not bool(norms.isfinite().all()):
            raise DataError(f"step {self.step + 1}: a gradient is not finite; lower train.lr ({self.config.rate})")
        scale = (self.config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        if self.config.max_grad_norm and float(scale.min()) < 1:
            for gradient in gradients:
                gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def drawn_windows(count: int, config: TrainConfig, generator: np.random.Generator) -> NDArray[np.bool_]:
    """[count], which of the windows a training draws whose order the same generator makes."""
    order, drawn = batches(count, config, generator), np.zeros(count, bool)
    _dropout_seed(config, generator)
    for _ in range(config.steps):
        drawn[next(order).numpy()] = True
        if drawn.all():
            break
    return drawn


def _dropout_seed(config: TrainConfig, generator: np.random.Generator) -> int:
    """Drawn only where it is used: without dropout, the order of the windows is that of any other training."""
    return int(generator.integers(1 << 62)) if config.dropout else 0


def batches(count: int, config: TrainConfig, generator: np.random.Generator) -> Iterator[Tensor]:
    """Batches of window numbers without end: one shuffled pass after another, cut into batches."""
    order: list[int] = []
    while True:
        while len(order) < config.batch_size:
            order += generator.permutation(count).tolist()
        yield torch.tensor(order[: config.batch_size])
        del order[: config.batch_size]
