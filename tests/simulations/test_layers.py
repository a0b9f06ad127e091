"""A federation that trains some layers only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fedlora import read_peft
from fedlora.lora.layers import layers_of
from fedlora_server.run.run_directory import read_metrics

if TYPE_CHECKING:
    from tests.simulations.conftest import Simulator
from tests.tiny.llamas import Packs, Variant


@pytest.mark.parametrize("method", ["svd", "stack", "fedex", "fedsa"])
def test_a_federation_trains_and_publishes_the_layers_that_were_chosen(
    simulator: Simulator, packs: Packs, method: str
) -> None:
    base = packs(Variant(layers=5)).directory
    changes = (f"base={base}", "lora.layers=0,-1", f"server.method={method}", "data.max_bytes=1500")
    run, _ = simulator(f"layers-{method}", *changes)
    first, *_, last = read_metrics(run)
    assert (last["replies"], last["excluded"]) == (2, {})
    assert last["loss"] != first["loss"]
    content = read_peft(run / "rounds" / "0002" / "adapter")
    assert layers_of(content.adapter.pairs) == (0, 4)
    assert content.config["layers_to_transform"] == [0, 4]
    assert json.loads((run / "config.json").read_text())["lora.layers"] == "0,-1"
