"""How many neighbours are kept, counted the slow way."""

from __future__ import annotations

import numpy as np

from bench_encoder import neighbours_kept, unit


def test_neighbours_kept_are_counted_text_by_text() -> None:
    generator = np.random.default_rng(0)
    expected, got = (unit(generator.normal(size=(30, 8)).astype(np.float32)) for _ in range(2))
    shares = []
    for text in range(30):
        others = [other for other in range(30) if other != text]
        nearest = [sorted(others, key=lambda o, v=v: -float(v[text] @ v[o]))[:5] for v in (expected, got)]  # type: ignore[misc]
        shares.append(len(set(nearest[0]) & set(nearest[1])) / 5)
    assert neighbours_kept(expected, got, 5) == float(np.mean(shares))
    assert neighbours_kept(expected, expected, 5) == 1
