"""A device's policy: a table of refusals, the hours of a day, the machine's power, the counts of a day."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.run import AggregationConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.errors import ConfigError, PolicyError
from fedlora_client.policy.day_counts import DayCounter, DayCounts
from fedlora_client.policy.machine import Machine
from fedlora_client.policy.policy import Policy
from fedlora_client.policy.quiet_hours import QuietHours
from hypothesis import given
from hypothesis import strategies as st

RUN = RunConfig(
    name="spring-notes", lora=LoraSection(rank=8), train=TrainConfig(steps=20), server=ServerConfig(method="svd")
)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, ""),
        ({"runs": ("spring-*", "other")}, ""),
        ({"runs": ("autumn-*",)}, "policy-run"),
        ({"runs": ("spring",)}, "policy-run"),
        ({"methods": ("svd", "fedavg")}, ""),
        ({"methods": ("fedavg",)}, "policy-method"),
        ({"max_steps": 20}, ""),
        ({"max_steps": 19}, "policy-steps"),
        ({"max_rank": 8}, ""),
        ({"max_rank": 7}, "policy-rank"),
    ],
)
def test_a_run_is_refused_by_the_word_of_what_is_not_allowed(values: dict[str, Any], reason: str) -> None:
    policy = Policy(**values)
    if not reason:
        policy.check_run(RUN)
        return
    with pytest.raises(PolicyError) as refused:
        policy.check_run(RUN)
    assert refused.value.reason == reason
    assert "policy." in str(refused.value)


def test_a_run_that_takes_smaller_ranks_is_not_refused_for_its_largest() -> None:
    smaller = dataclasses.replace(RUN, aggregation=AggregationConfig(min_rank=4))
    Policy(max_rank=4).check_run(smaller)
    with pytest.raises(PolicyError, match="ranks of 4 and more"):
        Policy(max_rank=3).check_run(smaller)
    pattern = dataclasses.replace(RUN, lora=LoraSection(rank=8, rank_pattern=("down_proj=32",)))
    with pytest.raises(PolicyError, match="ranks of 32 and more"):
        Policy(max_rank=16).check_run(pattern)


def test_a_base_is_allowed_by_the_beginning_of_its_fingerprint() -> None:
    fingerprint = "0123456789abcdef" * 4
    Policy(bases=(fingerprint[:16], "f" * 64)).check_base(fingerprint)
    with pytest.raises(PolicyError, match="the run's base is 0123456789abcdef") as refused:
        Policy(bases=("f" * 64,)).check_base(fingerprint)
    assert refused.value.reason == "policy-base"
    Policy(min_examples=3).check_examples(3)
    with pytest.raises(PolicyError, match="2 examples"):
        Policy(min_examples=3).check_examples(2)


@pytest.mark.parametrize(
    "values",
    [
        {"max_rank": -1},
        {"max_seconds": float("nan")},
        {"max_seconds": float("inf")},
        {"min_battery": 101},
        {"bases": ("short",)},
        {"bases": ("Z" * 64,)},
        {"quiet_hours": ("22-7",)},
        {"quiet_hours": ("24:00-07:00",)},
        {"quiet_hours": ("07:00-07:00",)},
        {"quiet_hours": ("07:60-08:00",)},
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_its_key(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.{next(iter(values))}"):
        Policy(**values)


def test_what_a_policy_says_is_told_in_words() -> None:
    assert list(Policy().words()) == ["takes part in whatever it is asked"]
    told = list(Policy(max_rank=4, mains_only=True, quiet_hours=("22:00-07:00",), bytes_a_day=50_000_000).words())
    assert told == [
        "trains ranks up to 4", "is quiet at 22:00-07:00, by its own clock", "works on mains power only",
        "receives and sends up to 50 MB of adapters a day",
    ]  # fmt: skip


minutes = st.integers(0, 24 * 60 - 1)


@given(begin=minutes, end=minutes, now=minutes)
def test_quiet_hours_hold_from_their_begin_for_their_length_and_no_longer(begin: int, end: int, now: int) -> None:
    def at(minute: int) -> time:
        return time(minute // 60, minute % 60)

    if begin == end:
        return
    hours = QuietHours.read(f"{at(begin):%H:%M}-{at(end):%H:%M}", "test")
    assert hours.hold(at(now)) == ((now - begin) % 1440 < (end - begin) % 1440)
    # The two halves of a day leave no minute and share none.
    assert hours.hold(at(now)) != QuietHours(hours.end, hours.begin).hold(at(now))


def machine(root: Path, supplies: dict[str, dict[str, str]], pressure: str = "", load: str = "") -> Machine:
    for name, files in supplies.items():
        folder = root / "sys/class/power_supply" / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text + "\n")
    for path, text in (("proc/pressure/cpu", pressure), ("proc/loadavg", load)):
        if text:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return Machine(root)


BATTERY = {"type": "Battery", "capacity": "41", "status": "Discharging"}
MAINS = {"type": "Mains", "online": "1"}


@pytest.mark.parametrize(
    ("supplies", "on_mains", "percent"),
    [
        ({}, True, None),
        ({"AC": MAINS, "BAT0": BATTERY}, True, 41),
        ({"AC": {**MAINS, "online": "0"}, "BAT0": BATTERY}, False, 41),
        ({"BAT0": BATTERY}, False, 41),
        ({"BAT0": {**BATTERY, "status": "Full", "capacity": "100"}}, True, 100),
        ({"BAT0": {**BATTERY, "capacity": "80"}, "BAT1": {**BATTERY, "capacity": "7"}}, False, 7),
        ({"hid-mouse": {**BATTERY, "scope": "Device", "capacity": "3"}}, True, None),
        ({"BAT0": {"type": "Battery", "capacity": "much", "status": "Charging"}}, True, None),
        ({"usb": {"type": "USB", "online": "1"}, "BAT0": BATTERY}, True, 41),
    ],
)
def test_power_is_what_the_kernel_tells(
    tmp_path: Path, supplies: dict[str, dict[str, str]], on_mains: bool, percent: float | None
) -> None:
    told = machine(tmp_path, supplies)
    assert (told.on_mains(), told.battery_percent()) == (on_mains, percent)


@pytest.mark.parametrize(
    ("pressure", "load", "idle"),
    [
        ("some avg10=90.00 avg60=2.50 avg300=1.00 total=5\n", "64.0 1 1", True),
        ("some avg10=0.00 avg60=45.10 avg300=1.00 total=5\n", "0.0 1 1", False),
        ("", "0.01 0.1 0.2 1/99 7", True),
        ("", "4096.5 0.1 0.2 1/99 7", False),
        ("", "", True),
    ],
)
def test_idle_is_by_pressure_or_else_by_load(tmp_path: Path, pressure: str, load: str, idle: bool) -> None:
    assert machine(tmp_path, {}, pressure, load).is_idle() is idle


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"quiet_hours": ("11:00-13:00",)}, "policy-hours"),
        ({"quiet_hours": ("13:00-11:00",)}, ""),
        ({"min_battery": 42}, "policy-battery"),
        ({"min_battery": 41}, ""),
        ({"mains_only": True}, "policy-mains"),
    ],
)
def test_power_and_hours_are_looked_at_as_a_question_comes(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    policy, here = Policy(**values), machine(tmp_path, {"BAT0": BATTERY})
    try:
        policy.check_power(datetime(2026, 3, 1, 12, 0), here)
        assert not reason
    except PolicyError as refused:
        assert refused.reason == reason


def test_a_machine_with_other_work_is_not_idle(tmp_path: Path) -> None:
    busy = machine(tmp_path, {}, "some avg10=0.00 avg60=45.10 avg300=1.00 total=5\n")
    Policy().check_idle(busy)
    with pytest.raises(PolicyError) as refused:
        Policy(idle_only=True).check_idle(busy)
    assert refused.value.reason == "policy-idle"


TODAY = date(2026, 11, 30)


def test_a_days_rounds_and_bytes_are_counted_over_restarts(tmp_path: Path) -> None:
    path, policy = tmp_path / "counts.json", Policy(rounds_a_day=2, bytes_a_day=100)
    for name in ("run/1", "run/2", "run/2"):
        counter = DayCounter(path)
        counts = counter.today(TODAY)
        counts.check(policy, name, 0)
        counter.keep(counts.with_round(name).with_bytes(30))
    counts = DayCounter(path).today(TODAY)
    assert (len(counts.rounds), counts.bytes) == (2, 90)
    counts.check(policy, "run/2", 10)  # it is asked for again
    counts.check(policy, None, 10)  # and measuring is no round
    cases: list[tuple[str | None, int, str]] = [("run/3", 0, "policy-rounds"), (None, 11, "policy-bytes")]
    for asked, coming, reason in cases:
        with pytest.raises(PolicyError) as refused:
            counts.check(policy, asked, coming)
        assert refused.value.reason == reason
    DayCounter(path).today(TODAY + timedelta(days=1)).check(policy, "run/3", 100)


@given(st.lists(st.integers(-2, 2), max_size=12))
def test_a_clock_that_is_set_back_by_days_gives_no_more_rounds_than_days_begun(moves: list[int]) -> None:
    counts, day, seen, done = DayCounts(), TODAY, {TODAY}, 0
    for move in (0, *moves):
        day += timedelta(days=move)
        newest = max(seen)
        if (newest - day).days > 2:
            day = newest - timedelta(days=2)
        seen.add(day)
        counts = counts.on(day)
        try:
            counts.check(Policy(rounds_a_day=1), f"run/{done}", 0)
        except PolicyError:
            continue
        counts, done = counts.with_round(f"run/{done}"), done + 1
    assert done <= (max(seen) - TODAY).days + 1


def test_a_clock_that_was_years_ahead_does_not_stop_the_device_for_years() -> None:
    counts = DayCounts(day="2061-01-01", rounds=("a/1",), bytes=5).on(TODAY)
    assert (counts.day, counts.rounds) == (TODAY.isoformat(), ("a/1",))
    assert counts.on(TODAY + timedelta(days=1)) == DayCounts(day="2026-12-01")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"day": "soon", "rounds": [], "bytes": 0}', '{"day": 1}'])
def test_damaged_counts_begin_anew_and_say_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "counts.json").write_text(text)
    counter = DayCounter(tmp_path / "counts.json")
    assert "counted anew" in counter.notice
    assert counter.today(TODAY) == DayCounts(day=TODAY.isoformat())


@pytest.mark.parametrize("key", ["bytes_a_day", "max_rank", "max_steps", "max_seconds"])
def test_a_number_that_bounds_nothing_is_refused_and_the_largest_that_does_is_told(key: str) -> None:
    def values(number: int) -> dict[str, Any]:
        return {key: number}

    for number in (1 << 53, 10**400):
        with pytest.raises(ConfigError, match=rf"policy\.{key}: .*; expected 0 \(no bound\) or more, less than 2\^53"):
            Policy(**values(number))
    assert list(Policy(**values((1 << 53) - 1)).words())
