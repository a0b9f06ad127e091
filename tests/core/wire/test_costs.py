"""What a device says that its part of a round cost is numbers, whoever sends it."""

from __future__ import annotations

import math

from fedlora.wire.costs import TOLD, told_costs


def test_what_can_be_no_cost_is_not_told() -> None:
    strange = [math.nan, math.inf, -1.0, 1e300, 10**400, "3", [1.0], None]
    for value in strange:
        assert told_costs(dict.fromkeys(TOLD, value)) == {}
    assert told_costs({"step_s": 1, "peak_mb": 0.0, "mine": 3.0}) == {"step_s": 1.0, "peak_mb": 0.0}
