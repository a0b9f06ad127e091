"""What a person sees while `fedlora train` runs: the plan, then a bar with loss, speed, memory and time left."""

from __future__ import annotations

import time
from typing import Self

from fedlora.config.run import TrainConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedlora_client.layers.step_plan import StepPlan
from fedlora_client.training.memory import resident_bytes
from fedlora_client.training.trainer import Watcher

_LINES = 20  # of progress where there is no terminal, and one a minute
_LINE_S = 60.0


class TrainDisplay:
    """A bar on a terminal; a line now and then where the output goes to a file."""

    def __init__(self, console: Console, config: TrainConfig) -> None:
        self._console, self._config = console, config
        columns = (
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=config.steps)
        self._started, self._first = time.monotonic(), 0
        self._told = self._started  # when the last line was printed
        self.watcher = Watcher(on_plan=self._plan, on_step=self._step, on_evaluation=self._evaluation)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def _plan(self, plan: StepPlan) -> None:
        self._console.print(f"plan: {plan}, learning rate {self._config.rate:g}", highlight=False, soft_wrap=True)

    def _step(self, step: int, loss: float) -> None:
        if self._first == 0:
            self._first = step + 1  # the first one is no measure of speed
            self._started = time.monotonic()
        done = step + 1 - self._first
        tokens = done * self._config.batch_size * self._config.sequence_length
        speed = f"{tokens / (time.monotonic() - self._started):.0f} tokens/s  " if done else ""
        text = f"loss {loss:.3f}  {speed}{resident_bytes() / 1e6:.0f} MB"
        self._progress.update(self._task, completed=step + 1, description=text)
        every = max(1, self._config.steps // _LINES)
        is_due = (step + 1) % every == 0 or step + 1 == self._config.steps
        if not self._console.is_terminal and (is_due or time.monotonic() - self._told >= _LINE_S):
            self._told = time.monotonic()
            self._console.print(f"step {step + 1}/{self._config.steps}  {text}", highlight=False)

    def _evaluation(self, steps: int, loss: float) -> None:
        when = f"after step {steps}" if steps else "before the first step"
        self._console.print(f"held-out loss {when}: {loss:.4f}", highlight=False)
