"""The report is made from what a run left on disk, whatever names its devices give themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.run import RunConfig
from fedlora_simulations.report import write_report


def record(number: int, devices: dict[str, float], **changes: Any) -> dict[str, Any]:
    trained = {"devices": len(devices), "replies": len(devices), "aggregation_error": 0.25} if number else {}
    empty = {"devices": 0, "replies": 0, "aggregation_error": None}
    common = {"round": number, "excluded": {}, "bytes_down": 2_000_000, "bytes_up": 1_000_000, "train_loss": {}}
    return common | empty | trained | {"loss": devices, "server_s": 0.5, "seconds": 1.5} | changes


def report_of(run: Path, *records: dict[str, Any]) -> str:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps(RunConfig(name="kitchen").flat()), encoding="utf-8")
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return write_report(run).read_text(encoding="utf-8")


def test_the_report_shows_the_numbers_of_every_round_and_device(tmp_path: Path) -> None:
    page = report_of(tmp_path, record(0, {"a": 3.0, "b": 4.0}), record(1, {"a": 2.5, "b": 2.0}))
    assert "<title>kitchen" in page
    for cell in ("3.5000", "2.2500", "25.00%", "2 of 2", "base", "-0.5000", "-2.0000", "2.00", "1.00"):
        assert cell in page


@pytest.mark.parametrize("count", [1, 10, 11, 40])
def test_the_report_names_every_device_however_many_there_are(tmp_path: Path, count: int) -> None:
    losses = {f"device-{number}": 1.0 + number for number in range(count)}
    page = report_of(tmp_path, record(0, losses), record(1, losses))
    assert page.count("<svg") == 3
    for name in losses:
        assert f"<td>{name}<" in page


NAMES = ["<script>alert(1)</script>", "a & b", '"quoted"', "$x$", "$\\frac$", "_hidden", "ünïcode", "{{ config }}", " "]


@pytest.mark.parametrize("name", NAMES)
def test_the_report_shows_whatever_name_a_device_gives_itself_as_text(tmp_path: Path, name: str) -> None:
    page = report_of(tmp_path, record(0, {name: 3.0}), record(1, {name: 2.5}))
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert "-0.5000" in page


def test_the_report_of_a_run_without_evaluation_has_its_other_plots(tmp_path: Path) -> None:
    page = report_of(tmp_path, record(0, {}), record(1, {}))
    assert page.count("<svg") == 3
    assert "\N{EN DASH}" in page


def test_the_report_leaves_out_the_plot_of_an_error_that_was_not_measured(tmp_path: Path) -> None:
    page = report_of(tmp_path, record(0, {"a": 1.0}), record(1, {"a": 1.0}, aggregation_error=None))
    assert page.count("<svg") == 2
    assert "Aggregation error" not in page


def test_the_report_counts_who_was_left_out_over_all_rounds(tmp_path: Path) -> None:
    page = report_of(
        tmp_path,
        record(0, {"a": 1.0}),
        record(1, {"a": 1.0}, excluded={"not-finite": 2}),
        record(2, {"a": 1.0}, excluded={"not-finite": 1, "no-answer": 4}),
    )
    assert "3 \N{MULTIPLICATION SIGN} not-finite" in page
    assert "4 \N{MULTIPLICATION SIGN} no-answer" in page


def test_the_same_metrics_give_the_same_report(tmp_path: Path) -> None:
    records = record(0, {"a": 1.0}), record(1, {"a": 0.5})
    assert report_of(tmp_path / "one", *records) == report_of(tmp_path / "two", *records)


def test_the_report_tells_what_a_round_took_on_each_device(tmp_path: Path) -> None:
    rounds = [
        record(1, {}, costs={"a": {"step_s": 0.25, "bytes_up": 1000}, "b": {"step_s": 2.0}}),
        record(2, {}, costs={}),
    ]
    page = report_of(tmp_path, record(0, {}), *rounds)
    for cell in ("What a round took", "local step, s", '<td>a<td class="n">0.250<td class="n">1000', "2.000"):
        assert cell in page
    assert "energy" not in page
    assert "What a round took" not in report_of(tmp_path, record(0, {}), record(1, {}))
