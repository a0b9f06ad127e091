"""Components have the same signs, in whatever order the updates of a round arrive."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.signs import with_signs

from tests.server.method_cases import METHODS, Case, dense, devices

LORA = LoraConfig(rank=3, alpha=6.0)


@pytest.mark.parametrize("method", sorted(name for name in METHODS if not METHODS[name].keeps_components))
def test_the_order_of_arrival_turns_no_component(method: str) -> None:
    case = Case(method, LORA)
    updates = devices(case.round())
    results = [
        case.played(case.round(), [updates[k] for k in order]).now.adapter
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 4, 1, 0, 2])
    ]
    for module, pair in results[0].pairs.items():
        assert (np.take_along_axis(pair.lora_A, np.abs(pair.lora_A).argmax(1)[:, None], 1) > 0).all()
        for other in results[1:]:
            np.testing.assert_allclose(other.pairs[module].lora_A, pair.lora_A, atol=1e-3)
            np.testing.assert_allclose(other.pairs[module].lora_B, pair.lora_B, atol=1e-3)


def test_a_turned_component_leaves_the_product_as_it_was() -> None:
    case = Case("svd", LORA)
    adapter = devices(case.round(), 1)[0][0]
    turned = dense(with_signs(adapter))
    assert all(np.array_equal(turned[module], product) for module, product in dense(adapter).items())
