"""What a study gave, as a report's panels: the rate of each row is the one that the study chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.errors import ConfigError
from fedlora_simulations.commands.report import report
from fedlora_simulations.study.definition import POOLED, Run, Study
from fedlora_simulations.study.file import read_study
from fedlora_simulations.study.numbers import lines
from fedlora_simulations.study.panels import study_panels
from fedlora_simulations.study.plan import choose
from fedlora_simulations.study.results import Result, Results

from tests.simulations.reports.parsed import Page
from tests.simulations.study.test_study import Recorder, result, run_all, written


def measured(run: Run) -> Result:
    """The best rate is the middle one; rows, settings and seeds differ."""
    config = run.config
    loss = 2.0 + abs(np.log10(config.train.lr) + 2) / 10 + 0.01 * config.seed + 0.1 * ("svd" not in run.row)
    loss += 0.05 * (run.setting == "half") - 0.3 * run.is_pooled
    return result(run, float(loss), base_loss=None if run.is_pooled else 4.0, bytes_down=2000.0, examples=7)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(written(tmp_path))


@pytest.fixture
def done(study: Study, tmp_path: Path) -> Results:
    results = Results(tmp_path / "done")
    run_all(study, results, lambda run, workers: measured(run))
    return results


def test_the_panels_have_the_numbers_of_the_studys_own_tables(study: Study, done: Results) -> None:
    panels = study_panels(done.path.parent)
    assert [panel.title for panel in panels] == ["done: all", "done: half"]
    for panel, setting in zip(panels, study.settings, strict=True):
        table = {line.name: line for line in lines(study, done, setting)}
        assert {group.name for group in panel.groups} == set(study.methods)
        for group in panel.groups:
            end = group.final("loss")
            assert end is not None
            assert (end.mean, end.deviation) == pytest.approx((table[group.name].loss, table[group.name].deviation))
            assert group.first("loss") == 4.0
            assert group.config["train.lr"] == choose(study, done)[group.name].lr
            assert group.final("kb_down") is not None
        assert np.mean(list(panel.pooled.values())) == pytest.approx(table[POOLED].loss)


def test_a_study_has_a_page_with_the_way_to_pooled_and_the_rates(done: Results, tmp_path: Path) -> None:
    told = CliRunner().invoke(report, [str(done.path.parent), "-o", str(tmp_path / "out"), "--tables", "csv"])
    assert told.exit_code == 0, told.output
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert {"all", "half"} <= set(page.headings)
    named = [values["id"] for _, values in page.elements if values.get("id")]
    assert len(named) == len(set(named)), "also of the second setting"
    assert page.column("2-results", "way to pooled")[POOLED] == "100%"
    way = page.column("results", "way to pooled")
    assert way[POOLED] == "100%"
    assert way["svd"].endswith("%")
    rates = page.tables["learning-rates"]
    assert rates[0] == ["", "0.001", "0.01", "0.1", ""]
    assert {row[0] for row in rates[1:]} == {"fedavg", "svd", "momentum", POOLED}
    assert (tmp_path / "out" / "tables" / "half" / "results.csv").is_file()


def test_a_run_that_failed_is_told(study: Study, done: Results) -> None:
    run = study.run("svd", "half", 2, 0.01)
    done.add(Result(digest=run.digest, row="svd", setting="half", seed=2, lr=0.01, failure="no memory"))
    [_, half] = study_panels(done.path.parent)
    assert "svd, half, seed 2 failed: no memory" in half.notices
    assert "svd, half: no result of seed 2" in half.notices


def test_a_study_without_a_number_is_one_clear_error(study: Study, tmp_path: Path) -> None:
    results = Results(tmp_path / "none")
    run = study.run("svd", "all", 1, 0.01)
    results.add(Result(digest=run.digest, row="svd", setting="all", seed=1, lr=0.01, failure="no memory"))
    with pytest.raises(ConfigError, match=r"results\.jsonl: no method gave a number yet; wait for the first"):
        study_panels(tmp_path / "none")


def test_what_a_recorder_measures_is_a_panel_too(study: Study, tmp_path: Path) -> None:
    results = Results(tmp_path / "recorded")
    run_all(study, results, Recorder())
    [every, half] = study_panels(tmp_path / "recorded")
    assert {group.config["train.lr"] for panel in (every, half) for group in panel.groups} == {0.01}
