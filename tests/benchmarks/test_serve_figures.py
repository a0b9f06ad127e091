"""How the figures of the serving benchmark come out of what its rounds measured."""

from __future__ import annotations

import numpy as np
import pytest

from serve.rounds import Row, least_correlation
from serve.routes import Route
from serve.table import answer_figures, speed_ratio, step_figures


def _row(**speeds: list[float]) -> Row:
    return Row(Route(process="kernel", case="none"), {key.replace("_", "@"): value for key, value in speeds.items()})


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    rows = {"ours": _row(steps_64=[10.0, 30.0, 100.0]), "theirs": _row(steps_64=[10.0, 10.0, 10.0])}
    assert speed_ratio(rows, "steps@64", "ours", ["theirs"]) == 3.0


def test_a_ratio_is_over_the_fastest_of_several() -> None:
    rows = {"ours": _row(steps_64=[12.0]), "slow": _row(steps_64=[2.0]), "fast": _row(steps_64=[6.0])}
    assert speed_ratio(rows, "steps@64", "ours", ["slow", "fast", "missing"]) == 2.0


def test_there_is_no_ratio_where_one_side_was_not_measured() -> None:
    rows = {"ours": _row(steps_64=[12.0]), "theirs": _row(steps_512=[2.0])}
    assert speed_ratio(rows, "steps@64", "ours", ["theirs"]) is None
    assert speed_ratio(rows, "steps@64", "missing", ["ours"]) is None
    assert set(answer_figures(rows).values()) == {None}


def test_figures_after_a_longer_context_say_so_in_their_name() -> None:
    rows = {
        "base": _row(steps_64=[10.0], steps_512=[8.0]),
        "kernel 16 r8": _row(steps_64=[9.0], steps_512=[6.0]),
        "kernel-1 16 r8": _row(steps_64=[3.0], steps_512=[2.0]),
    }
    figures = step_figures(rows, [64, 512])
    assert figures["mixed16_r8_vs_base"] == pytest.approx(0.9)
    assert figures["mixed16_r8_vs_base_512"] == pytest.approx(0.75)
    assert figures["mixed16_vs_sequential"] == pytest.approx(3.0)
    assert figures["mixed16_r16_vs_base"] is None


def test_the_least_correlation_is_that_of_the_row_with_the_wrong_scores() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    wrong = scores.copy()
    wrong[1] = -wrong[1]
    assert least_correlation(scores, scores) == pytest.approx(1.0)
    assert least_correlation(scores, wrong) == pytest.approx(-1.0)


def test_scores_that_were_not_told_are_not_compared() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    some = np.where(np.arange(100) < 20, scores + 3, np.nan).astype(np.float32)
    assert least_correlation(scores, some) == pytest.approx(1.0)
