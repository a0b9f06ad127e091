"""What robust rules find, looked for in the open: coordinates instead of Gram matrices, loops instead of sorting."""

# N updates, D numbers of an update

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [N, D]


def sum_of_distances(points: Points, to: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(points - to, axis=1).sum())


def geometric_median(points: Points) -> NDArray[np.float64]:
    """By Newton's method with a line search, on sums of sqrt(distance^2 + mu^2) whose mu goes to zero: no fixed point."""
    y = np.median(points, axis=0)
    scale = float(np.median(np.linalg.norm(points - y, axis=1))) or 1.0
    for mu in scale * 10.0 ** np.arange(0, -9, -0.5):
        for _ in range(60):
            apart = points - y
            d = np.sqrt((apart**2).sum(1) + mu**2)
            gradient = -(apart / d[:, None]).sum(0)
            hessian = (1 / d).sum() * np.eye(points.shape[1]) - (apart / d[:, None] ** 3).T @ apart
            step = np.linalg.solve(hessian, -gradient)
            length, now = 1.0, d.sum()
            while length > 1e-12:
                moved = np.sqrt(((points - y - length * step) ** 2).sum(1) + mu**2).sum()
                if moved <= now + 1e-4 * length * float(gradient @ step):
                    break
                length /= 2
            y = y + length * step
            if -float(gradient @ step) < 1e-16 * now:
                break
    return np.asarray(y)


def kept_by_krum(points: Points, liars: int) -> set[int]:
    """The N - f with the least score: the sum of squared distances to the N - f - 2 nearest others."""
    count = len(points)
    scores = {}
    for k in range(count):
        squares = sorted(math.dist(points[k], points[other]) ** 2 for other in range(count) if other != k)
        scores[k] = sum(squares[: count - liars - 2])
    return set(sorted(scores, key=lambda k: scores[k])[: count - liars])


def kept_by_norm(points: Points, bound: float) -> set[int]:
    """Those that are no longer than `bound` times the middle length."""
    lengths = sorted(math.hypot(*point) for point in points)
    middle = (lengths[(len(lengths) - 1) // 2] + lengths[len(lengths) // 2]) / 2
    return {k for k, point in enumerate(points) if math.hypot(*point) <= bound * middle}


def coordinate_median(points: Points) -> NDArray[np.float64]:
    """The value of each coordinate with the least sum of absolute differences, the mean of the two where two have it."""
    result = []
    for column in points.T:
        costs = {float(value): sum(abs(value - other) for other in column) for value in column}
        least = min(costs.values())
        ties = [value for value, cost in costs.items() if cost <= least * (1 + 1e-12) + 1e-300]
        result.append(sum((min(ties), max(ties))) / 2)
    return np.array(result)


def outlying(count: int, outliers: int, size: float, seed: int) -> Points:
    """`count` points about a common change, the first of them turned round and `size` times as large."""
    generator = np.random.default_rng([count, outliers, seed])
    dimensions = min(count, 12)
    points = generator.normal(size=(count, dimensions)) + 2 * generator.normal(size=dimensions)
    points[:outliers] *= -size
    return points


def clouds(most: int = 50) -> list[tuple[int, int, float]]:
    """(N, outliers, size) for N from 3, without outliers, with a fifth and with as many as a majority allows."""
    counts = [*range(3, 19), 24, 31, 40, most]
    shares = itertools.product(counts, (0.0, 0.2, 0.499), (5.0, 1e8))
    return sorted({(n, int(share * n), size if int(share * n) else 1.0) for n, share, size in shares})
