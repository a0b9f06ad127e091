"""What docs/robustness.md says of attacks holds: each within its bound, for every method with every rule."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from fedlora.config.run import AggregationConfig
from fedlora_server.methods import find_method

from bench_robust import rows
from robust.attacked_round import relative_error
from robust.attacks import ATTACKS

# What one round may be moved by, relative to what the honest devices did together.
DEFAULT: Mapping[str, float] = {"inner product": 0.35, "flip": 0.3, "weight": 0.7}  # and of all others:
MOST = 0.12
RULE: Mapping[str, float] = {"collude 3": 0.3, "collude 2": 0.2, "inner product": 0.2}
KRUM_TAKES_TWO = {"collude 3": 1.0}  # byzantine_share is 0.2: of ten devices two
FACTORS: Mapping[str, float] = {"flip": 0.4, "a little": 0.3, "inner product": 0.6, "weight": 1.0, "duplicated": 0.1}
ROWS = list(rows())


@pytest.mark.parametrize(("method", "name", "settings"), ROWS, ids=[f"{method}, {name}" for method, name, _ in ROWS])
def test_no_attack_moves_a_round_by_more_than_its_bound(method: str, name: str, settings: AggregationConfig) -> None:
    averages_factors = bool(find_method(method).refuses_robust)
    for attack, what in ATTACKS.items():
        error = relative_error(method, settings, what)
        if name == "nothing":
            assert error > 1 or attack not in ("scale", "constant", "weight", "backdoor", "collude 2", "collude 3")
        elif averages_factors:  # no rule: only the weight is bounded
            assert error <= FACTORS.get(attack, float("inf")), attack
        elif name == "default":
            assert error <= DEFAULT.get(attack, MOST), attack
        else:
            bounds = {**RULE, **(KRUM_TAKES_TWO if name == "multi-krum" else {})}
            assert error <= bounds.get(attack, 0.15), attack


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_default_holds_for_other_numbers(seed: int) -> None:
    for attack, what in ATTACKS.items():
        assert relative_error("svd", AggregationConfig(), what, seed) <= DEFAULT.get(attack, MOST) + 0.05, attack
