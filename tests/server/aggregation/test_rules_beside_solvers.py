"""Every robust rule beside an independent solver, for 3 to 50 updates, with and without outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.robust import GeometricMedian, Median, MultiKrum, NormBound

from tests.reference import robust_rules
from tests.reference.robust_rules import clouds, outlying, sum_of_distances
from tests.server.method_cases import dense

LORA = LoraConfig(rank=1, alpha=1.0)
SETTINGS = AggregationConfig(byzantine_share=0.3)
CLOUDS = pytest.mark.parametrize(("count", "outliers", "size"), clouds())


@CLOUDS
def test_the_geometric_median_is_where_newtons_method_ends(count: int, outliers: int, size: float) -> None:
    points = outlying(count, outliers, size, 1)
    beta = GeometricMedian(LORA, SETTINGS).weights(points @ points.T)
    assert beta.sum() == pytest.approx(1)
    assert (beta >= 0).all()
    best = robust_rules.geometric_median(points)
    scale = float(np.median(np.linalg.norm(points - best, axis=1)))
    assert np.linalg.norm(beta @ points - best) <= 1e-4 * scale
    assert sum_of_distances(points, beta @ points) <= sum_of_distances(points, best) + 1e-6 * scale


def test_the_geometric_median_does_not_stand_still_on_an_update() -> None:
    points = np.random.default_rng(0).normal(size=(10, 200))  # every distance alike: the mean, nearly, and no update
    beta = GeometricMedian(LORA, SETTINGS).weights(points @ points.T)
    assert beta.max() < 0.2
    assert np.linalg.norm(beta @ points - points.mean(0)) < 0.1 * np.linalg.norm(points.mean(0))


@pytest.mark.parametrize("twins", [1, 2, 3])
def test_the_geometric_median_is_an_update_where_that_is_the_least(twins: int) -> None:
    """Four corners and their middle, and then the middle several times: the iteration begins on it."""
    points = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], *([[0.0, 0]] * twins)])
    beta = GeometricMedian(LORA, SETTINGS).weights(points @ points.T)
    np.testing.assert_allclose(beta, [0] * 4 + [1 / twins] * twins, atol=1e-12)


def test_the_geometric_median_leaves_an_update_on_which_its_iteration_begins() -> None:
    """The mean of these is the third of them, and not their median."""
    points = np.array([[4.0, 0], [-1, 0.1], [0, 0], [-1, -0.1], [-1, 0.2], [-1, -0.2]])
    points[2] = -points[[0, 1, 3, 4, 5]].sum(0) / -5
    beta = GeometricMedian(LORA, SETTINGS).weights(points @ points.T)
    best = robust_rules.geometric_median(points)
    assert np.linalg.norm(beta @ points - best) < 1e-4


def test_the_geometric_median_of_two_updates_is_between_them() -> None:
    points = np.array([[1.0, 0], [0, 3]])
    beta = GeometricMedian(LORA, SETTINGS).weights(points @ points.T)
    assert sum_of_distances(points, beta @ points) == pytest.approx(math.dist(*points))


@CLOUDS
def test_multi_krum_keeps_what_counting_neighbours_keeps(count: int, outliers: int, size: float) -> None:
    points = outlying(count, outliers, size, 2)
    liars = max(0, min(math.ceil(0.3 * count - 1e-9), (count - 3) // 2))
    kept = np.flatnonzero(MultiKrum(LORA, SETTINGS).weights(points @ points.T))
    assert set(kept) == (robust_rules.kept_by_krum(points, liars) if liars else set(range(count)))


@CLOUDS
def test_the_norm_bound_keeps_what_is_no_longer_than_its_multiple_of_the_middle(
    count: int, outliers: int, size: float
) -> None:
    points = outlying(count, outliers, size, 3)
    kept = np.flatnonzero(NormBound(LORA, SETTINGS).weights(points @ points.T))
    assert set(kept) == robust_rules.kept_by_norm(points, 3.0)


@pytest.mark.parametrize(("count", "outliers", "size"), [case for case in clouds() if case[0] <= 12])
def test_the_median_is_that_of_every_entry_of_the_products(count: int, outliers: int, size: float) -> None:
    points = outlying(count, outliers, min(size, 1e3), 4)[:, :3]
    down = Adapter(LORA, {"q_proj": LoraPair(np.ones((1, 1), np.float32), np.zeros((3, 1), np.float32))})
    aggregator = Median(LORA, SETTINGS).aggregator(None, down)  # type: ignore[arg-type]
    for point in points:
        aggregator.add(
            Adapter(LORA, {"q_proj": LoraPair(np.ones((1, 1), np.float32), point[:, None].astype(np.float32))}), 1
        )
    got = dense(aggregator.result().adapter)["q_proj"][:, 0]
    np.testing.assert_allclose(got, robust_rules.coordinate_median(points), rtol=1e-5, atol=1e-6)
