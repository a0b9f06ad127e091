"""A network that fails: what devices give is the same, whatever became of a share of their requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.faulty_proxy import FaultyProxy
from tests.faults.fleets import Fleet

pytestmark = pytest.mark.faults
SHARE = 0.2


def test_a_run_ends_with_the_same_adapter_where_a_fifth_of_the_requests_is_reset_late_or_cut(
    fleet: Fleet, network: FaultyProxy, undisturbed: str, row: Callable[[str, str], None]
) -> None:
    with network.faulty(SHARE, seed=7) as done:
        fleet.begin(server__round_timeout_s=150)
        fleet.finish()
    assert min(done[kind] for kind in ("reset", "delayed", "cut")) > 0
    assert fleet.digest() == undisturbed
    row(f"{SHARE:.0%} of requests reset, late or cut", f"{dict(done)}, adapter {undisturbed:.16}")
