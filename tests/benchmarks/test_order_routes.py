"""The two routes whose times bench_order.py compares do the same work: they end at the same adapter and error."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.wire.update import decode_update
from fedlora_server.aggregation.aggregation import Aggregation

from aggregate.clients import SHAPES, Clients
from aggregate.float_sums import FloatRound


def test_both_routes_end_at_the_same_adapter_and_error() -> None:
    clients = Clients(SHAPES[0], 1)
    config = clients.config("fedavg")
    aggregation = Aggregation(config, clients.first)
    own = aggregation.round(aggregation.start(), 1)
    floats = FloatRound(clients.first, config.aggregation.max_weight, np.random.default_rng([config.seed, 1, 2]))
    for data in clients.updates(5):
        update = decode_update(data)
        own.add(update.adapter, update.num_examples)
        floats.add(update.adapter, update.num_examples)
    committed, peer = aggregation.committed(own.result()), floats.result()
    for module, pair in committed.pairs.items():
        np.testing.assert_allclose(peer.pairs[module].lora_A, pair.lora_A, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(peer.pairs[module].lora_B, pair.lora_B, rtol=1e-5, atol=1e-6)
    assert floats.error(peer) == pytest.approx(own.error(committed), rel=1e-3)
