"""What signing adds to a round, from what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench_trust import RoundCost


def test_the_share_is_a_devices_part_and_all_of_the_servers_over_the_round_without_them() -> None:
    cost = RoundCost(train_s=9.0, server_s=1.0, device_signing_s=0.05, server_signing_s=0.15, record_s=0.0)
    assert cost.share == pytest.approx(0.02)
    assert replace(cost, record_s=0.1).share == pytest.approx(0.03)
    assert cost.with_devices(11).share == pytest.approx((0.05 + 1.65) / 20)
