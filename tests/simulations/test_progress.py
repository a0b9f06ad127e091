"""What is told while a simulation runs: bars in a terminal, a line now and then where there is none."""

from __future__ import annotations

import io
import threading

import pytest
from fedlora_simulations.progress import RunProgress, lines_of, showing
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.progress import Progress

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made by somebody in Flower."""
    for name, value in (("_task_id", 1), ("_run_id", 7), ("_node_id", SUPERLINK_NODE_ID)):
        monkeypatch.setattr(TaskIdentity, name, value)


class Told(io.StringIO):
    """A pipe that says when something came."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def write(self, text: str) -> int:
        self.came.set()
        return super().write(text)


def message(server_round: int, kind: str = "train") -> Message:
    return Message(RecordDict(), 1, kind, group_id=str(server_round))


def test_a_pipe_gets_a_line_now_and_then_of_what_is_done_at_present() -> None:
    pipe = Told()
    console = Console(file=pipe, width=40)
    progress = Progress(console=console, disable=True)
    with lines_of(progress, first_s=0.01, every_s=WAIT_S):
        bars = RunProgress(progress, rounds=8)
        for _ in range(3):
            bars.pushed(message(2))
        bars.done(message(2))
        assert pipe.came.wait(WAIT_S)
    (line,) = pipe.getvalue().splitlines()
    assert line.startswith("round 2 of 8: train, 1 of 3, ")
    assert line.endswith(" s")


def test_what_takes_less_than_that_is_not_talked_about() -> None:
    pipe = Told()
    with showing(Console(file=pipe)) as progress:
        bars = RunProgress(progress, rounds=8)
        for server_round in range(1, 9):
            bars.pushed(message(server_round))
            bars.done(message(server_round))
    assert pipe.getvalue() == ""


def test_a_terminal_gets_bars_and_no_lines() -> None:
    terminal = io.StringIO()
    with showing(Console(file=terminal, force_terminal=True, width=80)) as progress:
        bars = RunProgress(progress, rounds=8)
        bars.pushed(message(1, "evaluate"))
        bars.done(message(1, "evaluate"))
    assert "round 1 of 8: measure" in terminal.getvalue()
    assert "1/1" in terminal.getvalue()


def test_the_lines_end_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(console=Console(file=io.StringIO()), disable=True)
    with pytest.raises(ZeroDivisionError), lines_of(progress):
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
