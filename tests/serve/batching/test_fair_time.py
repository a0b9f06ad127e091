"""Whose sequences take part in a step."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from fedlora_serve.batching.fair_time import CREDIT_S, FairTime


class Row:
    """A sequence, as far as it is asked for here."""

    def __init__(self, share: str) -> None:
        self.request = SimpleNamespace(share=share)


class Engine:
    """Steps that take `base_s`, and a second more for every thousand tokens; each sequence reads one token a step."""

    def __init__(self, base_s: float = 0.0) -> None:
        self.now, self.base_s = 0.0, base_s
        self.time = FairTime(lambda: self.now)
        self.rows: list[Any] = []
        self.had: Counter[str] = Counter()  # tokens

    def join(self, share: str, rows: int = 1) -> None:
        self.rows += [Row(share) for _ in range(rows)]

    def leave(self, share: str) -> None:
        self.rows = [row for row in self.rows if row.request.share != share]

    def step(self) -> int:
        """How many rows took part."""
        tokens = Counter(row.request.share for row in self.time.due(self.rows))
        seconds = self.base_s + tokens.total() / 1000
        self.now += seconds
        self.time.took(seconds, tokens)
        self.had += tokens
        return tokens.total()

    def seconds_of(self, share: str, tokens: int) -> float:
        """How long so many tokens take."""
        began, had = self.now, self.had[share]
        while self.had[share] - had < tokens:
            self.step()
        return self.now - began


def test_alone_or_all_alike_everybody_takes_part_in_every_step() -> None:
    engine = Engine()
    engine.join("a", 16)
    assert {engine.step() for _ in range(1000)} == {16}
    alike = Engine()
    for number in range(16):
        alike.join(str(number))
    assert {alike.step() for _ in range(1000)} == {16}


@pytest.mark.parametrize("base_s", [0.0, 0.001, 0.02])
@pytest.mark.parametrize("hogs", [1, 3, 10])
def test_a_short_answer_takes_less_than_twice_its_time_alone_whoever_else_is_there(base_s: float, hogs: int) -> None:
    alone = Engine(base_s)
    alone.join("b")
    expected = alone.seconds_of("b", 20)
    engine = Engine(base_s)
    for number in range(hogs):
        engine.join(f"hog {number}", 15 // hogs)
    for _ in range(200):
        engine.step()
    for _ in range(5):  # again and again
        engine.join("b")
        longest_step = base_s + 16 / 1000  # the one that it has to wait for
        assert engine.seconds_of("b", 20) < 2 * expected + longest_step
        engine.leave("b")
        for _ in range(20):
            engine.step()


@pytest.mark.parametrize("base_s", [0.0, 0.001, 0.02])
def test_a_long_answer_beside_one_with_many_rows_takes_at_most_twice_its_time_alone(base_s: float) -> None:
    alone, engine = Engine(base_s), Engine(base_s)
    alone.join("b")
    engine.join("hog", 15)
    for _ in range(100):
        engine.step()
    engine.join("b")
    hog = engine.had["hog"]
    seconds = engine.seconds_of("b", 5000)
    assert seconds < 2.1 * alone.seconds_of("b", 5000)
    assert engine.had["hog"] - hog > 0.3 * seconds * 15 / (base_s + 0.015), "a good part of what it would get alone"


def test_whoever_comes_the_others_go_on() -> None:
    engine = Engine()
    engine.join("victim")
    engine.step()
    for number in range(3000):  # another name every time
        engine.join(f"sybil {number}")
        engine.step()
        engine.leave(f"sybil {number}")
    assert engine.had["victim"] >= 3000 // 16


def test_who_was_alone_for_long_owes_nobody_more_than_the_credit() -> None:
    engine = Engine()
    engine.join("a", 8)
    for _ in range(10_000):
        engine.step()
    engine.join("b", 8)
    had = engine.had["a"]
    while engine.now < 80 + CREDIT_S + 0.1:
        engine.step()
    before = engine.now
    had = engine.had["a"]
    while engine.now < before + 1:
        engine.step()
    assert engine.had["a"] - had > 400, "half of a second is theirs"


def test_who_asks_under_new_names_is_not_remembered_for_ever() -> None:
    engine = Engine()
    engine.join("stays")
    for number in range(10_000):
        engine.join(str(number))
        engine.step()
        engine.leave(str(number))
    assert len(engine.time._had_s) < 5000
    assert "stays" in engine.time._had_s


def test_steps_are_to_be_short_while_others_come() -> None:
    engine = Engine()
    engine.join("a")
    engine.step()
    assert not engine.time.is_shared
    engine.join("b")
    engine.step()
    assert engine.time.is_shared
    engine.leave("b")
    for _ in range(60_000):
        engine.step()
    assert not engine.time.is_shared
    engine.leave("a")
    engine.join("c")
    engine.step()
    assert engine.time.is_shared
