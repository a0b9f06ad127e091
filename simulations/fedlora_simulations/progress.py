"""What a person sees while a simulation runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class RunProgress:
    """The bar of the present round's training or measuring: devices that replied, of those that were asked."""

    def __init__(self, progress: Progress, rounds: int) -> None:
        self._progress, self._rounds = progress, rounds
        self._tasks: dict[str, TaskID] = {}

    def pushed(self, message: Message) -> None:
        name = self._name(message)
        if name not in self._tasks:
            for task in self._progress.tasks:  # one bar at a time, or a long run outgrows the terminal
                self._progress.update(task.id, visible=False)
            self._tasks[name] = self._progress.add_task(name, total=0)
        number = self._tasks[name]
        self._progress.update(number, total=(self._progress.tasks[number].total or 0) + 1)

    def done(self, message: Message) -> None:
        self._progress.advance(self._tasks[self._name(message)])

    def _name(self, message: Message) -> str:
        verb = {"train": "train", "evaluate": "measure"}[message.metadata.message_type]
        return f"round {message.metadata.group_id} of {self._rounds}: {verb}"


@contextmanager
def showing(console: Console) -> Iterator[Progress]:
    """A progress display on `console`."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress
