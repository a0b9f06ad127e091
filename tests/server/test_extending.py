"""The package of docs/extending.md, installed beside fedlora: its method keeps the contract, and its parts run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.config.run import AggregationConfig, DataConfig
from fedlora.data.datasets import find_dataset
from fedlora.data.examples import text_of
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.aggregation import Round
from fedlora_server.run.run_directory import read_metrics

from tests.installed_package import install
from tests.server.method_cases import (
    Case,
    Dense,
    Reference,
    Weighted,
    assert_close,
    dense_mean,
    devices,
    mean_factors,
)
from tests.server.method_contract import MethodContract
from tests.simulations.conftest import TINY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def blocks(language: str) -> list[str]:
    """The page's blocks of code."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site-packages")
    (project,) = blocks("toml")
    install(folder, project, {"projected.py": "\n\n".join(blocks("python"))})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    del sys.modules["projected"]


@pytest.fixture
def case(lora: LoraConfig) -> Case:
    return Case("projected", lora)


@pytest.fixture
def reference() -> Reference:
    return projected


def projected(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    """Row by row the least squares solution of B A = M, with the mean of A."""
    result = {}
    for module, mean in dense_mean(updates).items():
        A, _ = mean_factors(updates, module)
        result[module] = np.linalg.lstsq(A.T, mean.T, rcond=None)[0].T @ A
    return result


class TestTheMethodOfThePage(MethodContract):
    """As every method of fedlora."""


def test_the_robust_rule_of_the_page_leaves_out_the_larger_half() -> None:
    case = Case("svd", LoraConfig(rank=2), AggregationConfig(robust="lower-half", weights="uniform"))
    updates = devices(case.round(), 3)
    sizes = [sum(float(np.sum(matrix**2)) for matrix in dense_mean([update]).values()) for update in updates]
    counting = [update for update, size in zip(updates, sizes, strict=True) if size < max(sizes)]
    plain = Case("svd", LoraConfig(rank=2), AggregationConfig(weights="uniform"))
    assert_close(case.dense(case.round(), updates), plain.dense(plain.round(), counting))


@pytest.mark.parametrize("partition", range(8))
def test_the_data_set_of_the_page_gives_each_device_a_table_of_its_own(partition: int) -> None:
    data = find_dataset("tables")(DataConfig(), {"partition-id": partition, "num-partitions": 8})
    assert data.name == f"table-of-{partition + 2}"
    train, held_out = (text_of(*examples).splitlines() for examples in (data.train, data.held_out))
    assert f"{partition + 2} times 3 is {3 * (partition + 2)}." in train
    assert set(train).isdisjoint(held_out)


@pytest.mark.parametrize(
    "changes",
    [("server.method=projected",), ("aggregation.robust=lower-half", "aggregation.weights=uniform")],
    ids=["the method", "the robust rule"],
)
def test_a_simulation_runs_with_the_parts_of_the_page(tmp_path: Path, changes: tuple[str, ...], base: BasePack) -> None:
    scenario, output = tmp_path / "tiny.toml", tmp_path / "run"
    scenario.write_text(TINY.format(base=base.directory), encoding="utf-8")
    options = [part for change in ("data.name=tables", *changes) for part in ("--set", change)]
    arguments = ["simulate", str(scenario), "-o", str(output), "--workers", "1", *options]
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records = read_metrics(output)
    assert [record["replies"] for record in records] == [0, 2, 2]
    assert records[0]["loss"].keys() == {"table-of-2", "table-of-3"}
    assert records[-1]["loss"] != records[0]["loss"]
