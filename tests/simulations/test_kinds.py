"""Every kind of adapter in a federation: what travels, what is committed, how a run goes on, what does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora import read_peft
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError
from fedlora.lora.kinds import BY_NAME, own_in
from fedlora_server.aggregation.aggregation import Aggregation
from fedlora_server.run.run_directory import read_metrics

from tests.tiny.kinds import KINDS, section_of

if TYPE_CHECKING:
    from tests.simulations.conftest import Simulator

WEIGHTS = "adapter_model.safetensors"


def method_of(kind: str) -> str:
    """A method of aggregation that takes the kind: the default, or fedavg."""
    return "fedavg" if BY_NAME[kind].refuses_method("svd") else "svd"


def changes_of(kind: str) -> tuple[str, ...]:
    rank = ("lora.rank=2", "lora.alpha=32.0") if "rank" in BY_NAME[kind].keys else ("lora.rank=16", "lora.alpha=32.0")
    return f"lora.method={kind}", f"server.method={method_of(kind)}", *rank


@pytest.mark.parametrize("kind", KINDS)
def test_a_federation_trains_it_sends_little_more_than_its_numbers_and_goes_on_to_the_same_bits(
    simulator: Simulator, base: BasePack, kind: str
) -> None:
    run, _ = simulator(f"kind-{kind}", *changes_of(kind))
    first, *_, last = read_metrics(run)
    assert (last["replies"], last["excluded"]) == (2, {})
    assert last["loss"] != first["loss"]
    config = RunConfig(base=str(base.directory), lora=section_of(kind))
    adapter = read_peft(run / "rounds" / "0002" / "adapter", any_kind=True).adapter
    assert adapter.config.method == kind
    began = own_in(config.first_adapter(base))
    assert own_in(adapter).keys() == began.keys()
    assert all(not np.array_equal(array, began[name]) for name, array in own_in(adapter).items() if array.size > 4)
    sent = 2 * adapter.size_bytes  # of two devices; each with a header of JSON, which has a line for each tensor
    assert sent < last["bytes_up"] < sent + 2 * (2000 + 80 * len(adapter.extras) + 80 * len(adapter.pairs))

    again = run.with_name(f"{run.name}-again")
    shutil.copytree(run, again)
    shutil.rmtree(again / "rounds" / "0002")
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[:2]))
    result = CliRunner().invoke(commands, ["resume", str(again), "--workers", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    for file in (WEIGHTS, "adapter_config.json"):
        place = Path("rounds", "0002", "adapter", file)
        assert (again / place).read_bytes() == (run / place).read_bytes()


REFUSED = [
    (kind, method)
    for kind in KINDS
    for method in ("svd", "fedsa", "ffa", "stack")
    if BY_NAME[kind].refuses_method(method)
]


@pytest.mark.parametrize(("kind", "method"), REFUSED)
def test_a_method_of_aggregation_that_does_not_fit_is_refused_before_the_run(
    base: BasePack, kind: str, method: str
) -> None:
    config = RunConfig(base=str(base.directory), lora=section_of(kind))
    config = RunConfig.from_flat({**config.flat(), "server.method": method}, "here")
    with pytest.raises(ConfigError, match=f"server.method is {method}, which does not fit lora.method = {kind}: "):
        Aggregation(config, config.first_adapter(base))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora.method": "adalora"}, "lora.method must be one of lora, ia3"),
        (
            {"lora.method": "ia3", "lora.rank": 8},
            r"lora\.rank means nothing to lora\.method = ia3; leave it out, got 8",
        ),
        (
            {"lora.method": "prefix", "lora.num_virtual_tokens": 0},
            "num_virtual_tokens must be an integer from 1 to 4096",
        ),
        (
            {"lora.num_virtual_tokens": 5},
            r"lora\.num_virtual_tokens means nothing to lora\.method = lora; leave it out",
        ),
        ({"lora.method": "prompt", "lora.prompt_tuning_init": "text"}, "must be one of SAMPLE_VOCAB, TEXT, RANDOM"),
        ({"lora.method": "prompt", "lora.prompt_tuning_init": "TEXT"}, r"prompt_tuning_init_text go together"),
        ({"lora.method": "ia3", "train.dropout": 0.1}, r"train\.dropout means nothing to lora\.method = ia3"),
        ({"lora.method": "ia3", "train.lora_plus_ratio": 4.0}, r"train\.lora_plus_ratio is for factors"),
    ],
)
def test_a_key_that_means_nothing_to_a_kind_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_flat(values, "here")
