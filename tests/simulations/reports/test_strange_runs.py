"""Numbers and names that a server never writes: a page is made of them, or they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.errors import ConfigError, RunError
from fedlora_simulations.commands.report import _panels
from fedlora_simulations.reports.charts import Line, LineChart, StackChart
from fedlora_simulations.reports.contents import Report, report_of
from fedlora_simulations.reports.drawing import WIDE, figure_of, look
from fedlora_simulations.study.panels import study_panels
from fedlora_simulations.study.results import Results

from tests.simulations.reports.runs import losses, record, write_run

LONG = "1" * 5000


def report(place: Path) -> Report:
    return report_of(_panels([place]))


def test_rounds_that_lie_far_apart_are_told_and_not_counted(tmp_path: Path) -> None:
    first, last = losses(2.0, 1.0)
    run = write_run(tmp_path / "run", [first, {**last, "round": 2**60}], server__rounds=3)
    assert report(run).notices == (f"run: no line of rounds 1 to {2**60 - 1} in metrics.jsonl",)


def test_a_mean_that_is_not_there_is_not_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(0, {"a": 2.0}), record(1, {"a": 1.0}, never_trained={"accuracy": 0.5})])
    (section,) = report(run).sections
    numbers = section.panel.groups[0].runs[0].numbers[1]
    assert {key: numbers[key] for key in numbers if key.startswith("never")} == {"never_trained.accuracy": 0.5}


def test_losses_whose_sum_is_no_number_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(0, {"a": 1.7e308, "b": 1.7e308})])
    with pytest.raises(RunError, match=r"line 1: loss is \{'a': 1\.7e\+308"):
        report(run)


@pytest.mark.parametrize("count", [-1, 10**400, 1 << 53, True, 1.0])
def test_examples_that_no_device_has_are_refused(tmp_path: Path, count: object) -> None:
    run = write_run(tmp_path / "run", losses(2.0, 1.0))
    for devices, test in (({"a": {"x": count}}, 0), ({"a": {"x": 1}}, count)):
        (run / "partition.json").write_text(json.dumps({"devices": devices, "test": test}))
        with pytest.raises(RunError, match="expected examples by device and kind"):
            report(run)


def test_kinds_of_any_length_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", losses(2.0, 1.0))
    (run / "partition.json").write_text(json.dumps({"devices": {"a": {LONG: 1, "2": 3}}, "test": 0}))
    (chart,) = report(run).sections[0].partitions
    assert chart.kinds == ("2", LONG)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "config",
    [{"server.rounds": "many"}, {"server.rounds": [1]}, {"lora.rank": {}}, {"of.later": [1]}, {"train.lr": "x"}],
)
def test_a_result_whose_configuration_is_none_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    result = {"digest": "d", "row": "svd", "setting": "x", "seed": 1, "lr": 0.1, "loss": 1.0}
    place = tmp_path / "results.jsonl"
    place.write_text(json.dumps({**result, "config": {"server.rounds": 3, "train.lr": 1, "of.later": "x"}}) + "\n")
    assert Results(tmp_path).all()[0].config["of.later"] == "x"
    place.write_text(json.dumps({**result, "config": config}) + "\n")
    with pytest.raises(ConfigError, match="line 1: not a result of a study: config is"):
        Results(tmp_path)


def test_a_study_of_more_rows_than_a_page_shows_is_refused(tmp_path: Path) -> None:
    result = {"row": "svd", "setting": "x", "seed": 1, "lr": 0.1, "loss": 1.0}
    lines = [json.dumps({**result, "digest": str(number), "row": f"row {number}"}) + "\n" for number in range(513)]
    (tmp_path / "results.jsonl").write_text("".join(lines[:512]))
    assert sum(len(panel.groups) for panel in study_panels(tmp_path)) == 512
    (tmp_path / "results.jsonl").write_text("".join(lines))
    with pytest.raises(ConfigError, match="513 groups of runs on one page; at most 512 are shown"):
        study_panels(tmp_path)


def test_of_many_devices_the_first_are_drawn_and_all_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", losses(2.0, 1.0))
    devices = {f"device {number}": {"x": 1} for number in range(500)}
    (run / "partition.json").write_text(json.dumps({"devices": devices, "test": 0}))
    (chart,) = report(run).sections[0].partitions
    assert isinstance(chart, StackChart) and len(list(chart.rows)) == 501
    assert chart.note.endswith("Drawn are the first 120 of 500 devices.")
    with look("x"):
        (axes,) = figure_of(chart, WIDE, titled=False).axes
    assert len(axes.patches) == 120


def test_what_a_stranger_calls_a_measure_or_a_unit_is_drawn_as_text_and_cut() -> None:
    line = Line(name="a", x=(0.0, 1.0), y=(2.0, 1.0), number=0)
    chart = LineChart(name="x", title="t" * 10**6, y_label="nats per $\\frac{$" + "u" * 10**6, lines=(line,))
    with look("x"):
        figure = figure_of(chart, WIDE, titled=True)
    (axes,) = figure.axes
    assert axes.get_ylabel().startswith(r"nats per \$\frac{\$u") and len(axes.get_ylabel()) < 200
    assert len(figure.get_suptitle()) < 200
    figure.canvas.draw()
