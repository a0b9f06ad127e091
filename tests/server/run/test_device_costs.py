"""What a round cost each device: in its record, in the file, and over the rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedlora.errors import RunError
from fedlora_server.run.device_costs import median_costs
from fedlora_server.run.round_record import RoundRecord, read_record


def test_the_median_is_over_the_rounds_that_a_device_took_part_in() -> None:
    records = [
        RoundRecord(1, costs={"b": {"step_s": 1.0, "joules": 3.0}, "a": {"step_s": 9.0}}).line(),
        RoundRecord(2, costs={"b": {"step_s": 5.0}}).line(),
        RoundRecord(3, costs={"b": {"step_s": 2.0}}).line(),
        {"round": 4},  # of an earlier version
    ]
    assert median_costs(records) == {"a": {"step_s": 9.0}, "b": {"step_s": 2.0, "joules": 3.0}}
    assert list(median_costs(records)) == ["a", "b"]


def test_costs_are_read_back_and_a_record_without_them_is_read(tmp_path: Path) -> None:
    line = RoundRecord(1, costs={"a": {"step_s": 0.5, "bytes_up": 12}}).line()
    path = tmp_path / "round.json"
    path.write_text(json.dumps(line))
    assert read_record(path).costs == {"a": {"step_s": 0.5, "bytes_up": 12}}
    del line["costs"]
    path.write_text(json.dumps(line))
    assert read_record(path).costs == {}


@pytest.mark.parametrize("costs", [3, {"a": 3}, {"a": {"step_s": "3"}}, {"a": {"step_s": float("nan")}}])
def test_costs_that_are_none_are_refused(tmp_path: Path, costs: object) -> None:
    path = tmp_path / "round.json"
    path.write_text(json.dumps(RoundRecord(1).line() | {"costs": costs}))
    with pytest.raises(RunError, match="costs"):
        read_record(path)
