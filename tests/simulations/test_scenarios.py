"""The scenario files that come with fedlora."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.config.run import RunConfig, read_scenario
from fedlora.data.datasets import find_dataset
from fedlora_server.methods import find_method

SCENARIOS = sorted((Path(__file__).resolve().parents[2] / "simulations" / "scenarios").glob("*.toml"))


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_a_scenario_that_comes_with_fedlora_names_things_that_there_are(path: Path) -> None:
    config = read_scenario(path)
    assert config.name == path.stem, "a run's directory is named after its scenario"
    find_method(config.server.method)
    find_dataset(config.data.name)
    assert config.base == "nano" or Path(config.base).is_absolute()
    assert not config.data.path or Path(config.data.path).is_absolute()
    assert config.server.min_devices <= config.simulation.devices
    assert RunConfig.from_flat(config.flat(), "flat") == config, "Flower carries all of it"


def test_there_are_a_demo_and_a_shakespeare_scenario() -> None:
    assert {"demo", "shakespeare"} <= {path.stem for path in SCENARIOS}
