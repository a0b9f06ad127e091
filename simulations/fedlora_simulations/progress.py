"""What a person sees while a simulation runs: bars in a terminal; in a file or a pipe, a line a minute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn

_FIRST_LINE_S, _LINE_S = 10.0, 60.0


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
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    with progress, lines_of(progress):
        yield progress


@contextmanager
def lines_of(progress: Progress, first_s: float = _FIRST_LINE_S, every_s: float = _LINE_S) -> Iterator[None]:
    """Where there is no terminal: how far `progress` is, after `first_s` seconds, then every `every_s`."""
    if progress.console.is_terminal:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        wait_s = first_s
        while not over.wait(wait_s):
            wait_s = every_s
            shown = [task for task in progress.tasks if task.visible]
            if shown:
                progress.console.print(_line(shown[-1]), highlight=False, markup=False, soft_wrap=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _line(task: Task) -> str:
    """`round 2 of 8: train, 3 of 8, 125 s`, with what the task tells besides."""
    parts = [task.description]
    if task.fields.get("counts", True):
        parts.append(f"{task.completed:.0f} of {task.total or 0:.0f}")
    if task.fields.get("now"):
        parts.append(str(task.fields["now"]))
    return ", ".join([*parts, f"{task.elapsed or 0:.0f} s"])
