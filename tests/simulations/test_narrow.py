"""Tables are whole in a terminal of 80 columns, whatever stands in them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from fedlora_client.data.account import Account
from fedlora_server.run.metrics_file import METRICS
from fedlora_server.run.round_record import RoundRecord
from fedlora_simulations.device_accounts import DeviceAccount, tell_data
from fedlora_simulations.narrow import MOST_NAME, within
from fedlora_simulations.partition import Partition, partition_tables
from fedlora_simulations.simulation import rounds_table
from rich.console import Console, RenderableType


def shown(*tables: RenderableType, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width)
    for table in tables:
        console.print(table)
    assert all(len(line) <= width for line in out.getvalue().splitlines())
    assert "…" not in out.getvalue()
    return out.getvalue()


@pytest.mark.parametrize("labels", [False, True])
def test_the_rounds_of_a_long_run_of_many_devices(tmp_path: Path, labels: bool) -> None:
    lines = []
    for number in (0, 1, 2, 100):
        record = RoundRecord(
            number, devices=50, replies=48, loss={f"d{place}": 3.25 for place in range(49 + (not number))},
            aggregation_error=0.1234, bytes_down=1_234_560_000, bytes_up=1_234_560_000, seconds=1234.5,
            excluded=Counter({"policy-hours": 2} if number else {}),
        )  # fmt: skip
        if labels:
            record.scores, record.test = {"accuracy": 0.91}, {"accuracy": 0.87}
        lines.append(json.dumps(record.line()) + "\n")
    (tmp_path / METRICS).write_text("".join(lines))
    told = shown(rounds_table(tmp_path))
    for whole in ("48 of 50", "(49 of 50)", "12.34%", "1234", "not counted: 6 policy-hours, in rounds 1 to 2, 100"):
        assert whole in told
    assert len([line for line in told.splitlines() if "48 of 50" in line]) == 3, "one line a round"


@pytest.mark.parametrize(
    "kinds", [["Sci/Tech", "a label of several words", *map(str, range(9))], [f"topic {n}" for n in range(11)]]
)
def test_a_partition_by_many_labels(kinds: list[str]) -> None:
    name = "a-device-of-a-name-of-forty-characters-x"
    tables = partition_tables(Partition(devices={name: dict.fromkeys(kinds, 12345)}))
    told = shown(*tables)
    assert len(tables) > 1
    assert told.count("12345") == 2 * len(kinds), "of the device, and of all"
    assert told.count(name[:MOST_NAME]) == len(tables)
    assert all(word in told for kind in kinds for word in kind.split())


def test_what_fits_is_one_table() -> None:
    [table] = within(80, "losses", ["", "a", "b"], [["svd", "3.041 ± 0.012", "1.0"]])
    assert "3.041 ± 0.012" in shown(table)


def test_the_data_of_devices() -> None:
    account = Account(name="KING_HENRY_THE_FIFTH_II", train=12345, cut=123, left_out=12, held_out=1234)
    out = io.StringIO()
    tell_data([DeviceAccount(all=account, files=(account,))], Console(file=out, width=80))
    assert out.getvalue().count(account.name) == 2
