"""Soups of a run: the mean of what it made, chosen by the loss that its own devices measure."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import DataConfig, LoraSection, RunConfig, Scalar, ServerConfig, SimulationConfig, TrainConfig
from fedlora.errors import ConfigError, DataError, RunError
from fedlora.lora.adapter import Adapter
from fedlora.peft.directory import read_peft
from fedlora.wire.task import Task
from fedlora_client.device import Device
from fedlora_server.run.run_directory import RUN, read_config, read_metrics
from fedlora_simulations.nodes import node_configs
from fedlora_simulations.simulation import simulate
from fedlora_simulations.soup import SoupOrder, greedily, make_soup
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.simulations.conftest import Simulator
from tests.tiny.encoders import encoder_pack
from tests.tiny.releases import committed_run


@pytest.fixture(scope="session")
def run(simulator: Simulator) -> Path:
    """Three rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlora_simulations.simulation.write_report", lambda run: None)
        return simulator("for-soup", "server.rounds=3")[0]


@pytest.fixture(scope="session")
def personal(simulator: Simulator) -> Path:
    """Two rounds in which each device keeps its own B."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlora_simulations.simulation.write_report", lambda run: None)
        return simulator("for-soup-of-devices", "server.method=fedsa")[0]


def mean_loss(run: Path, adapter: Adapter | None) -> float:
    """Over the run's devices, each asked by itself."""
    config = read_config(run)
    return float(np.mean([Device(config, node).evaluate(adapter)[0] for node in node_configs(config)]))


def command(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["soup", *arguments])


def test_the_uniform_soup_is_the_mean_of_the_products_and_has_the_loss_that_is_told(run: Path, tmp_path: Path) -> None:
    made = make_soup(SoupOrder(run=run, how="cat"), tmp_path / "made")
    assert made.taken == ("round 1", "round 2", "round 3")
    soup = read_peft(tmp_path / "made").adapter
    rounds = [read_peft(run / "rounds" / f"000{number}" / "adapter").adapter for number in (1, 2, 3)]
    for module in soup.pairs:
        mean = sum(each.product(module).dense() for each in rounds) / 3
        np.testing.assert_allclose(soup.product(module).dense(), mean, rtol=1e-4, atol=1e-6)
    assert made.loss == pytest.approx(mean_loss(run, soup), rel=1e-6)
    # What is measured of a round is what the run itself measured of it.
    lines = {line["round"]: np.mean(list(line["loss"].values())) for line in read_metrics(run)}
    assert made.base == pytest.approx(lines[0], rel=1e-6)
    assert list(made.alone.values()) == pytest.approx([lines[number] for number in (1, 2, 3)], rel=1e-4)


def test_the_greedy_soup_is_no_worse_than_its_best_ingredient_and_is_what_is_written(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    made = make_soup(SoupOrder(run=run, greedy=True), tmp_path / "made", tell=said.append)
    told = [line.partition(":")[0] for line in said]
    assert len(told) == len(set(told)), "each is measured and told once"
    assert made.loss <= min(made.alone.values())
    assert made.taken[0] == min(made.alone, key=made.alone.__getitem__)
    content = read_peft(tmp_path / "made")
    assert {pair.rank for pair in content.adapter.pairs.values()} == {2}
    assert mean_loss(run, content.adapter) == pytest.approx(made.loss, rel=1e-6)
    assert content.origin is not None
    assert content.origin.how.startswith("greedy soup, ")
    assert [part.name for part in content.origin.parts] == [f"for-soup {name}" for name in made.taken]
    assert [part.weight for part in content.origin.parts] == pytest.approx([1 / len(made.taken)] * len(made.taken))
    assert len(said) >= 5


def slow_greedy(alone: dict[str, float], of: dict[frozenset[str], float]) -> list[str]:
    """The recipe of the paper (algorithm 1), with losses in place of accuracies."""
    ingredients: list[str] = []
    for name in sorted(alone, key=lambda each: alone[each]):
        if not ingredients or of[frozenset([*ingredients, name])] <= of[frozenset(ingredients)]:
            ingredients.append(name)
    return ingredients


@given(st.lists(st.floats(0, 5), min_size=15, max_size=15))
def test_the_greedy_recipe_is_that_of_the_paper(losses: list[float]) -> None:
    names = "abcd"
    subsets = [frozenset(n for i, n in enumerate(names) if mask >> i & 1) for mask in range(1, 16)]
    of = dict(zip(subsets, losses, strict=True))
    alone = {name: of[frozenset([name])] for name in names}

    def measured(taken: Sequence[str]) -> float:
        return of[frozenset(taken)]

    assert list(greedily(alone, measured)) == slow_greedy(alone, of)


def test_some_rounds_are_taken_where_they_are_named(run: Path, tmp_path: Path) -> None:
    assert make_soup(SoupOrder(run=run, rounds="3,1"), tmp_path / "made").taken == ("round 1", "round 3")


@pytest.mark.parametrize("rounds", ["0", "4", "3-2", "two", "1-4", "1,,2"])
def test_rounds_that_are_not_committed_are_refused(run: Path, tmp_path: Path, rounds: str) -> None:
    with pytest.raises(ConfigError, match=r"has committed 1 to 3; expected some of these, such as 1-3 or 3, got '"):
        make_soup(SoupOrder(run=run, rounds=rounds), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_more_rounds_than_a_soup_can_name_are_refused_before_they_are_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora_simulations.soup.MOST_PARTS", 2)
    with pytest.raises(
        ConfigError, match=r"3 rounds; a soup names at most 2: name fewer with --rounds, or choose with"
    ):
        make_soup(SoupOrder(run=run), tmp_path / "made")


def test_of_a_personal_run_it_is_what_the_devices_kept(personal: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with fedsa each device keeps a factor for itself.*pass --devices"):
        make_soup(SoupOrder(run=personal), tmp_path / "made")
    made = make_soup(SoupOrder(run=personal, devices=True, how="cat"), tmp_path / "made")
    assert len(made.alone) == 2
    soup, config = read_peft(tmp_path / "made").adapter, read_config(personal)
    shared = read_peft(personal / "rounds" / "0002" / "adapter").adapter
    number = json.loads((personal / RUN).read_text())["run"]
    kept = [Device(config, node).as_used(shared, 2, task=Task(sends="A"), run=number) for node in node_configs(config)]
    for module in soup.pairs:
        mean = sum(each.product(module).dense() for each in kept) / 2
        assert np.abs(mean).max() > 0
        np.testing.assert_allclose(soup.product(module).dense(), mean, rtol=1e-4, atol=1e-6)


def test_devices_of_a_run_that_leaves_nothing_with_them_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--devices needs a simulation whose method leaves a factor.*this run is of svd"
    ):
        make_soup(SoupOrder(run=run, devices=True), tmp_path / "made")


def test_of_a_kind_without_products_it_is_the_mean_of_the_numbers(simulator: Simulator, tmp_path: Path) -> None:
    run, _ = simulator("for-soup-of-ia3", "lora.method=ia3", "server.method=fedavg", "lora.rank=16", "lora.alpha=32.0")
    made = make_soup(SoupOrder(run=run), tmp_path / "made")
    rounds = [read_peft(run / "rounds" / f"000{n}" / "adapter", any_kind=True).adapter for n in (1, 2)]
    soup = read_peft(tmp_path / "made", any_kind=True).adapter
    for name, value in soup.extras.items():
        np.testing.assert_allclose(value, (rounds[0].extras[name] + rounds[1].extras[name]) / 2, rtol=1e-6)
    assert made.loss == pytest.approx(mean_loss(run, soup), rel=1e-6)
    with pytest.raises(
        ConfigError, match=r"--how cat: .* is of IA3, of which the numbers are averaged, and no products"
    ):
        make_soup(SoupOrder(run=run, how="cat"), tmp_path / "other")


def test_of_a_kind_that_has_no_mean_it_is_refused(tmp_path: Path, base: BasePack) -> None:
    run = committed_run(tmp_path / "run", base, settings={"lora.method": "dora"})
    with pytest.raises(ConfigError, match=r"its adapters are DoRA, whose rows have lengths .*; take one of its rounds"):
        make_soup(SoupOrder(run=run), tmp_path / "made")


def test_where_a_head_trains_it_is_the_mean_of_heads_too(tmp_path: Path) -> None:
    base = encoder_pack("bert")
    settings: dict[str, Scalar] = {
        "lora.modules_to_save": "classifier",
        "train.sequence_length": 24,
        "train.compute": "float32",
    }
    run = committed_run(tmp_path / "run", base, settings=settings, head=("classifier",))
    lines = [{"text": f"so so {number}", "label": number % 3} for number in range(40)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    make_soup(SoupOrder(run=run, data=str(tmp_path / "own.jsonl")), tmp_path / "made")
    rounds = [read_peft(run / "rounds" / f"000{number}" / "adapter").adapter for number in (1, 2)]
    soup = read_peft(tmp_path / "made").adapter
    assert soup.extras.keys() == rounds[0].extras.keys() != set()
    for name, value in soup.extras.items():
        np.testing.assert_allclose(value, (rounds[0].extras[name] + rounds[1].extras[name]) / 2, rtol=1e-6)
        assert not np.array_equal(rounds[0].extras[name], rounds[1].extras[name])


def test_a_round_that_was_changed_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "rounds" / "0002" / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="is not as it was committed"):
        make_soup(SoupOrder(run=tmp_path / "run"), tmp_path / "made")


def test_where_the_data_have_a_test_set_the_soup_is_measured_on_it_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, count in (("train", 60), ("test", 8)):
        texts = [
            json.dumps({"text": f"def kitchen_{number}(table):\n    return table + {number}\n"})
            for number in range(count)
        ]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(texts))
    config = RunConfig(
        output=str(tmp_path / "run"), lora=LoraSection(rank=2, alpha=4.0), server=ServerConfig(rounds=2),
        data=DataConfig(name="files", path=str(tmp_path / "data"), partition=PartitionConfig(rule="iid")),
        simulation=SimulationConfig(devices=2),
        train=TrainConfig(steps=2, batch_size=2, sequence_length=32, lr=0.01, compute="float32", device="cpu"),
    )  # fmt: skip
    run = simulate(config, workers=1, console=Console(file=io.StringIO()))
    made = make_soup(SoupOrder(run=run), tmp_path / "made")
    lines = read_metrics(run)
    assert made.test["base"] == pytest.approx(lines[0]["test"]["loss"], rel=1e-6)
    best = min(made.alone, key=made.alone.__getitem__)
    assert made.test["best ingredient"] == pytest.approx(lines[int(best.split()[1])]["test"]["loss"], rel=1e-4)
    assert made.test["soup"] < made.test["base"]


def test_without_anything_to_measure_on_it_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("short", encoding="utf-8")
    with pytest.raises(DataError):
        make_soup(SoupOrder(run=run, data=str(tmp_path / "own.txt")), tmp_path / "made")


def test_the_command_tells_the_numbers_and_measures_on_a_file_of_ones_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("def kitchen(table):\n    return table + 1\n\n" * 200, encoding="utf-8")
    told = command(str(run), "--greedy", "--data", str(tmp_path / "own.txt"), "-o", str(tmp_path / "made"))
    assert told.exit_code == 0, told.exception
    assert told.stdout == f"{tmp_path / 'made'}\n"
    assert " of 3 taken: round " in told.stderr
    assert "chosen and measured on the same data" in told.stderr
    again = command(str(run), "-o", str(tmp_path / "made"))
    assert "pass --force to replace it" in str(again.exception)
    assert "--svd-rank: cat cuts no rank" in str(
        command(str(run), "--how", "cat", "--svd-rank", "2", "-o", str(tmp_path / "other")).exception
    )
