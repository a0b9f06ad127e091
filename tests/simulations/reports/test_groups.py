"""Runs become groups of seeds: their means and deviations are numpy's, and what cannot be compared is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora_simulations.reports.groups import Panel, grouped
from fedlora_simulations.reports.run import read_run

from tests.simulations.reports.runs import losses, record, write_run

MEANS = {
    ("svd", 1): (4.0, 3.0, 2.0), ("svd", 2): (4.0, 3.2, 2.1), ("svd", 3): (4.0, 3.1, 2.4),
    ("fedavg", 1): (4.0, 3.5, 2.5), ("fedavg", 2): (4.0, 3.3, 2.4), ("fedavg", 3): (4.0, 3.4, 2.8),
}  # fmt: skip


@pytest.fixture
def panel(tmp_path: Path) -> Panel:
    paths = [
        write_run(tmp_path / f"{method}-{seed}", losses(*means), server__method=method, seed=seed)
        for (method, seed), means in MEANS.items()
    ]
    return grouped([read_run(path) for path in paths])


def of(method: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.array([means for (name, _), means in MEANS.items() if name == method])


def test_seeds_of_one_configuration_are_one_group_named_by_what_it_differs_in(panel: Panel) -> None:
    assert [(group.name, group.seeds) for group in panel.groups] == [("svd", (1, 2, 3)), ("fedavg", (1, 2, 3))]
    assert panel.differing() == ["server.method"]
    assert panel.notices == ()


@pytest.mark.parametrize("method", ["svd", "fedavg"])
def test_the_band_of_a_round_is_numpys_mean_and_sample_deviation(panel: Panel, method: str) -> None:
    group = next(group for group in panel.groups if group.name == method)
    points = group.points("loss")
    assert [point.round for point in points] == [0, 1, 2]
    np.testing.assert_allclose([point.mean for point in points], of(method).mean(0))
    np.testing.assert_allclose(
        [np.nan if point.deviation is None else point.deviation for point in points], of(method).std(0, ddof=1)
    )
    end = group.final("loss")
    assert end is not None
    assert end.mean == pytest.approx(of(method)[:, -1].mean())
    assert group.first("loss") == pytest.approx(4.0)


def test_differences_are_paired_by_seed(panel: Panel) -> None:
    stats = pytest.importorskip("scipy.stats")
    svd, fedavg = panel.groups
    found = panel.difference(fedavg, svd, "loss")
    assert found is not None
    oracle = stats.ttest_rel(of("fedavg")[:, -1], of("svd")[:, -1])
    low, high = oracle.confidence_interval(0.95)
    assert (found.mean, found.low, found.high, found.p) == pytest.approx((1.2 / 3, low, high, oracle.pvalue))


def test_groups_without_a_common_seed_or_of_other_data_have_no_difference(tmp_path: Path) -> None:
    svd = write_run(tmp_path / "svd", losses(4.0, 3.0), seed=1)
    other_seed = write_run(tmp_path / "other", losses(4.0, 3.5), seed=2, server__method="ffa")
    other_data = write_run(tmp_path / "data", losses(4.0, 3.5), seed=1, data__max_bytes=99)
    panel = grouped([read_run(path) for path in (svd, other_seed, other_data)])
    first, *others = panel.groups
    assert [panel.difference(group, first, "loss") for group in others] == [None, None]
    assert any("different data or devices" in notice for notice in panel.notices)


def test_runs_of_different_bases_are_no_group_and_that_is_said(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / base, losses(4.0, 3.0), base=base * 64) for base in "ab"]
    panel = grouped([read_run(path) for path in paths])
    assert len(panel.groups) == 2
    assert len({group.name for group in panel.groups}) == 2
    [told] = panel.notices
    assert "2 bases" in told
    assert "of different models" in told
    assert panel.difference(*panel.groups, "loss") is None


def test_losses_per_token_and_per_text_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / unit, losses(4.0, 3.0), unit=unit) for unit in ("token", "text")]
    panel = grouped([read_run(path) for path in paths])
    assert panel.unit == "text or token"
    assert any("not to be compared" in notice for notice in panel.notices)


def test_of_two_runs_with_one_seed_the_one_that_went_further_counts(tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", losses(4.0, 3.0), server__rounds=2)
    long = write_run(tmp_path / "long", losses(4.0, 3.0, 2.0), server__rounds=2)
    panel = grouped([read_run(path) for path in (short, long)])
    [group] = panel.groups
    assert group.finals("loss") == {1: pytest.approx(2.0)}
    assert panel.notices == ("short and long have the same configuration and seed: long counts, once",)


def test_a_run_that_was_cut_short_is_left_out_of_the_means_of_the_finished(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", losses(4.0, 3.0, 2.0), seed=1)
    cut = write_run(tmp_path / "cut", losses(4.0, 1.0), seed=2, server__rounds=2)
    panel = grouped([read_run(path) for path in (whole, cut)])
    [group] = panel.groups
    assert group.seeds == (1,)
    assert panel.notices == ("cut is stopped after round 1 of 2: it is left out of the means of its group",)


def test_where_none_is_finished_the_rounds_that_all_have_count(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "two", losses(4.0, 3.0, 2.0), seed=1, server__rounds=9),
        write_run(tmp_path / "one", losses(4.0, 3.6), seed=2, server__rounds=9),
    ]
    panel = grouped([read_run(path) for path in paths])
    [group] = panel.groups
    assert group.finals("loss") == {1: pytest.approx(3.0), 2: pytest.approx(3.6)}
    assert [notice.partition(": ")[2] for notice in panel.notices] == [
        "stopped after round 2 of 9", "stopped after round 1 of 9",
    ]  # fmt: skip


def test_names_have_as_few_keys_as_tell_the_groups_apart(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "a": {"server__method": "svd", "train__lr": 0.002, "train__steps": 5},
        "b": {"server__method": "svd", "train__lr": 0.005, "train__steps": 5},
        "c": {"server__method": "ffa", "train__lr": 0.005, "train__steps": 6},
    }
    panel = grouped([read_run(write_run(tmp_path / name, losses(4.0, 3.0), **keys)) for name, keys in kinds.items()])
    assert {group.name.partition(",")[0] for group in panel.groups} == {"svd", "ffa"}
    assert len({group.name for group in panel.groups}) == 3
    assert panel.differing() == ["train.steps", "train.lr", "server.method"]


def test_the_seed_and_what_changes_no_number_are_no_difference(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", losses(4.0, 3.0), seed=1, output="x", simulation__workers=1)
    other = write_run(tmp_path / "other", losses(4.0, 3.0), seed=2, output="y", simulation__workers=2)
    [group] = grouped([read_run(one), read_run(other)]).groups
    assert group.seeds == (1, 2)
    assert group.name == "svd"


def test_a_mean_over_fewer_devices_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record(0, {"a": 1.0, "b": 2.0}), record(1, {"a": 0.5})])
    [told] = grouped([read_run(run)]).notices
    assert told == "run: fewer than 2 devices were measured after round 1"
