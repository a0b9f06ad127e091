"""A step that does not end is noticed, stopped where the runtime heeds it, and left behind where it does not."""

from __future__ import annotations

import threading
import time

import pytest
from fedlora.errors import GraphError
from fedlora_serve import step_watch
from fedlora_serve.errors import BusyError
from fedlora_serve.step_watch import StepWatch


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_watch, "_LAST_WAIT_S", 0.2)
    monkeypatch.setattr(step_watch, "leave_behind", lambda threads: LEFT.extend(threads))
    LEFT.clear()


LEFT: list[threading.Thread] = []


def run_until_told(watch: StepWatch) -> None:
    """A step that heeds its options."""
    with watch.step(1) as options:
        while not options.terminate:
            time.sleep(0.01)
        raise RuntimeError("terminated")


def test_a_step_may_take_many_times_what_the_slowest_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = StepWatch(100.0)
    assert watch.allowed_s(1) == watch.allowed_s(512) == 500
    for tokens, taken in ((64, 64.0), (1, 0.1), (1, 2.0)):
        with watch.step(tokens):
            now[0] += taken
    assert watch.allowed_s(1) == 100
    assert watch.allowed_s(512) == 20 * 512 * 2.0
    watch.close(0)


def test_a_step_that_goes_on_is_stopped_and_told_until_another_one_ends() -> None:
    watch = StepWatch(0.02)
    assert not watch.trouble
    with pytest.raises(GraphError, match="a step of the model had not ended after 0 s, and was stopped; restart"):
        run_until_told(watch)
    assert "had not ended" in watch.trouble
    assert not watch.is_lost
    with watch.step(1):
        pass
    assert not watch.trouble
    watch.close(0)


def test_an_error_of_the_runtime_stays_what_it_is() -> None:
    watch = StepWatch()
    with pytest.raises(RuntimeError, match="its own"), watch.step(1):
        raise RuntimeError("its own")
    assert not watch.trouble
    watch.close(0)


def test_a_step_that_does_not_even_stop_is_lost_and_no_other_begins() -> None:
    lost, told = threading.Event(), list[str]()

    def tell(message: str) -> None:
        told.append(message)
        lost.set()

    watch = StepWatch(0.02, tell)
    over, ended = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            with watch.step(1):
                over.wait(30)
        except GraphError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert lost.wait(30)
    assert watch.is_lost
    assert told == [watch.trouble]
    assert "does not stop; restart the service" in watch.trouble
    with pytest.raises(BusyError, match="does not stop"), watch.step(1):
        raise AssertionError
    watch.close(30)  # nobody waits for it
    assert [thread] == LEFT
    over.set()
    thread.join(30)
    assert len(ended) == 1  # what it gave is used by nobody


def test_closing_waits_for_a_step_and_then_stops_it() -> None:
    watch = StepWatch()
    begun = threading.Event()

    def run() -> None:
        with pytest.raises(BusyError, match="shutting down"), watch.step(1) as options:
            begun.set()
            while not options.terminate:
                time.sleep(0.01)
            raise RuntimeError("terminated")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert begun.wait(30)
    watch.close(0.05)
    thread.join(30)
    assert not thread.is_alive()
    assert LEFT == []
    with pytest.raises(BusyError, match="shutting down"), watch.step(1):
        raise AssertionError
