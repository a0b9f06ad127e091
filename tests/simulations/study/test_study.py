"""A study: what its file may say, which runs follow from it and in which order, and the numbers of its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fedlora.cli import commands
from fedlora.errors import ConfigError, RunError
from fedlora_simulations.study import decided as decided_module
from fedlora_simulations.study.checks import check_study
from fedlora_simulations.study.decided import with_decided
from fedlora_simulations.study.definition import CHOOSE_BY, LOSSES, POOLED, Run, Study
from fedlora_simulations.study.file import read_study
from fedlora_simulations.study.measures import measures_of
from fedlora_simulations.study.numbers import BASE, lines
from fedlora_simulations.study.plan import Choice, all_runs, as_it_began, cell_runs, choose, tuning_runs
from fedlora_simulations.study.plot import write_plot
from fedlora_simulations.study.results import Result, Results
from fedlora_simulations.study.runs import StudyRunner, failed
from fedlora_simulations.study.table import write_table
from rich.progress import Progress

STUDY = """
name = "small"
methods = ["fedavg", "svd"]
seeds = [1, 2]

[variants]
momentum = { server.method = "svd", aggregation.optimizer = "fedavgm" }

[settings]
all = { simulation.devices = 4 }
half = { simulation.devices = 4, server.devices_per_round = 2 }

[tuning]
lr = [0.01, 0.001, 0.1]
setting = "all"
seed = 1

[scenario]
data.name = "stdlib"
data.max_bytes = 4000
lora.rank = 2
lora.alpha = 4
train = { steps = 2, batch_size = 2, sequence_length = 32 }
server = { rounds = 2, evaluate_every = 2 }

[long]
seeds = [1, 2, 3]
scenario.train.steps = 20
"""
ROWS = ("fedavg", "svd", "momentum", POOLED)


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """The study's file, some of its text replaced."""
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(written(tmp_path))


def result(run: Run, loss: float, **more: object) -> Result:
    config = run.config
    found = Result(
        digest=run.digest, row=run.row, setting=run.setting, seed=config.seed, lr=config.train.rate, loss=loss,
        config=dict(config.flat()), machine="a machine",
    )  # fmt: skip
    return replace(found, **more)  # type: ignore[arg-type]


class Recorder:
    """Stands for the measuring: a loss for each run, and what was asked for in which order."""

    def __init__(self, loss: Callable[[Run], float] = lambda run: abs(math.log10(run.config.train.rate) + 2)) -> None:
        self.asked: list[Run] = []
        self._loss = loss

    def __call__(self, run: Run, workers: int) -> Result:
        self.asked.append(run)
        return result(run, self._loss(run))


def run_all(study: Study, results: Results, measure: Callable[[Run, int], Result]) -> None:
    with Progress(disable=True) as progress:
        StudyRunner(study, results, 1, progress, measure).run()


def test_a_study_has_a_row_for_each_method_and_variant_and_the_pooled_run(study: Study) -> None:
    assert study.rows == ROWS
    config = study.run("momentum", "half", 2, 0.01).config
    assert (config.server.method, config.aggregation.optimizer) == ("svd", "fedavgm")
    assert (config.server.devices_per_round, config.seed, config.train.rate, config.train.steps) == (2, 2, 0.01, 2)
    assert study.tuning.lr == (0.001, 0.01, 0.1), "in order, so that the edges of the grid are its ends"


def test_the_long_version_replaces_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    short, long = read_study(written(tmp_path)), read_study(written(tmp_path), long=True)
    assert (short.seeds, long.seeds) == ((1, 2), (1, 2, 3))
    one, other = (each.run("svd", "all", 1, 0.01).config for each in (short, long))
    assert other == replace(one, train=replace(one.train, steps=20))


def test_a_path_in_a_study_counts_from_its_file_and_is_no_part_of_what_a_run_is_known_by(tmp_path: Path) -> None:
    runs = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        path = written(folder, ("[scenario]", '[scenario]\nbase = "../pack"\ndata.path = "roles.gz"'))
        runs.append(read_study(path).run("svd", "all", 1, 0.01))
        config = runs[-1].located()
        assert config.base == str(tmp_path / "pack")
        assert config.data.path == str(folder / "roles.gz")
    assert runs[0].digest == runs[1].digest


WRONG = {
    "unknown key": (("seeds = [1, 2]\n", "seeds = [1, 2]\nseed = 3\n"), r"\.toml: unknown key seed; did you mean seeds"),
    "unknown key of a scenario": (("lora.rank", "lora.ranks"), r"small\.toml: scenario: .*lora\.ranks; did you mean"),
    "value out of range": (("steps = 2", "steps = 0"), r"small\.toml: scenario: train\.steps must be at least 1"),
    "unknown method": (('"svd"]', '"svt"]'), r"small\.toml: methods: svt: .*no method 'svt'; did you mean 'svd'"),
    "unknown method of a variant": (('method = "svd"', 'method = "x"'), r"methods: momentum: .*no method 'x'"),
    "unknown robust rule": (
        ("lora.rank = 2", 'lora.rank = 2\naggregation.robust = "x"'),
        r"aggregation\.robust must be one of auto, none, .*got 'x'",
    ),
    "unknown key of a variant": (("aggregation.optimizer", "aggregation.optimiser"), r"methods: momentum: unknown key"),
    "unknown key of a setting": (("devices_per_round", "per_round"), r"settings: half: unknown key"),
    "variant of a taken name": (("momentum =", "svd ="), "variants: there is a row svd already"),
    "variant that is no table": (("momentum = {", "other = 1\nmomentum = {"), "variants: other must be a table of keys"),
    "key that is an axis": (("{ steps", "{ lr = 0.1, steps"), r"scenario: train\.lr is .* tuned; take it out"),
    "setting of the tuning": (('setting = "all"', 'setting = "none"'), r"tuning\.setting must be one of all, half"),
    "seed of the tuning": (("seed = 1", "seed = 7"), r"tuning\.seed must be one of 1, 2, got 7"),
    "no seeds": (("[1, 2]", "[]"), "seeds must be a list of int, each once"),
    "the same seed twice": (("[1, 2]", "[1, 1]"), "seeds must be a list of int, each once"),
    "endless learning rate": (("0.1]", "1" + "0" * 400 + "]"), r"tuning: lr has a number beyond 2\^53"),
    "learning rate that is none": (("0.1]", '"0.1"]'), "tuning: lr must be a list of int or float"),
    "learning rate out of range": (("0.1]", "2.0]"), r"seeds and tuning: train\.lr must be between 0 and 1"),
    "no scenario": (("[scenario]", "[other]"), "unknown key other"),
    "unknown key of the long version": (("scenario.train.steps", "train.steps"), r"small\.toml: long: unknown key train"),
    "no TOML": (("seeds =", "seeds"), r"small\.toml: not TOML"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_a_study_is_refused_with_the_place_for(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(written(tmp_path, change))


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        read_study(tmp_path / "absent.toml")


def test_the_tuning_comes_first_then_the_cells_seed_by_seed_and_what_is_the_same_runs_once(
    study: Study, tmp_path: Path
) -> None:
    recorder = Recorder()
    run_all(study, Results(tmp_path / "out"), recorder)
    asked = [(run.row, run.setting, run.config.seed, run.config.train.rate) for run in recorder.asked]
    tuning = [(row, "all", 1, lr) for row in ROWS for lr in (0.001, 0.01, 0.1)]
    assert asked[: len(tuning)] == tuning
    federated = ROWS[:-1]
    assert asked[len(tuning) :] == [
        *((row, "half", 1, 0.01) for row in federated),
        *((row, "all", 2, 0.01) for row in ROWS),
        *((row, "half", 2, 0.01) for row in federated),
    ]
    assert len({run.digest for run in recorder.asked}) == len(recorder.asked) == len(all_runs(study, Results(tmp_path)))


def test_the_pooled_run_has_all_devices_in_every_round_and_is_no_federated_one(study: Study) -> None:
    everywhere, half = (study.run(POOLED, setting, 1, 0.01) for setting in ("all", "half"))
    assert everywhere.digest == half.digest
    assert half.config.server.devices_per_round == 0
    assert half.digest not in {study.run(row, "all", 1, 0.01).digest for row in study.methods}


def test_a_study_that_was_stopped_goes_on_where_it_was(study: Study, tmp_path: Path) -> None:
    class Stopped(Recorder):
        def __call__(self, run: Run, workers: int) -> Result:
            if len(self.asked) == 7:
                raise KeyboardInterrupt
            return super().__call__(run, workers)

    first, second, third = Stopped(), Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        run_all(study, Results(tmp_path), first)
    run_all(study, Results(tmp_path), second)
    run_all(study, Results(tmp_path), third)
    whole = Recorder()
    run_all(study, Results(tmp_path / "whole"), whole)
    assert [run.digest for run in first.asked + second.asked] == [run.digest for run in whole.asked]
    assert third.asked == []


def test_half_a_line_that_a_killed_run_left_is_written_over(study: Study, tmp_path: Path) -> None:
    results, (one, two, *_) = Results(tmp_path), tuning_runs(study)
    results.add(result(one, 1.0))
    with results.path.open("a", encoding="utf-8") as file:
        file.write('{"digest": "' + two.digest)
    again = Results(tmp_path)
    assert again.done(one.digest)
    assert again.get(two.digest) is None
    again.add(result(two, 2.0))
    found = [json.loads(line)["loss"] for line in again.path.read_text(encoding="utf-8").splitlines()]
    assert found == [1.0, 2.0]


def test_a_file_of_other_results_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"loss": 1}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"results\.jsonl: line 1: not a result of a study"):
        Results(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "none"}, "loss is 'none'"),
        ({"loss": 10**400}, "loss is 1"),
        ({"excluded": [1]}, "excluded is"),
        ({"row": None}, "row is None"),
        ({"config": [[[]]] * 3}, "config is"),
    ],
)
def test_a_result_of_another_kind_of_value_is_refused_with_its_line(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    sound = {"digest": "d", "row": "svd", "setting": "x", "seed": 1, "lr": 0.1, "loss": 1.0}
    lines = f"{json.dumps(sound)}\n{json.dumps(sound | changed)}\n"
    (tmp_path / "results.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"results\.jsonl: line 2: not a result of a study: {said}"):
        Results(tmp_path)


def test_a_result_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("[" * 100_000 + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1: not a result of a study"):
        Results(tmp_path)


def test_a_run_that_fails_is_recorded_with_its_reason_and_tried_once_more_by_the_next_call(
    study: Study, tmp_path: Path
) -> None:
    class Failing(Recorder):
        def __call__(self, run: Run, workers: int) -> Result:
            if run.row == "svd" and run.setting == "half" and run.config.seed == 2:
                self.asked.append(run)
                raise RunError("no sound answer")
            if run.row == "momentum" and run.setting == "half" and run.config.seed == 2:
                self.asked.append(run)
                raise ZeroDivisionError("a fault of ours")
            return super().__call__(run, workers)

    first, second = Failing(), Failing()
    run_all(study, Results(tmp_path), first)
    assert [run.row for run in first.asked[-3:]] == ["fedavg", "svd", "momentum"]
    found = {line.name: line.remarks for line in lines(study, Results(tmp_path), "half")}
    assert found["svd"] == ("seed 2 failed: no sound answer",)
    assert found["momentum"] == ("seed 2 failed: ZeroDivisionError('a fault of ours')",)
    run_all(study, Results(tmp_path), second)
    assert [run.row for run in second.asked] == ["svd", "momentum"]


def test_each_row_gets_the_learning_rate_of_its_least_loss_and_an_edge_of_the_grid_is_told(
    study: Study, tmp_path: Path
) -> None:
    losses = {"fedavg": (3.0, 2.0, 2.5), "svd": (1.0, 2.0, 3.0), POOLED: (3.0, 2.0, 1.5)}
    results = Results(tmp_path)
    for row, row_losses in losses.items():
        for lr, loss in zip(study.tuning.lr, row_losses, strict=True):
            results.add(result(study.run(row, "all", 1, lr), loss))
    for lr in study.tuning.lr:
        results.add(failed(study.run("momentum", "all", 1, lr), "diverged"))
    choices = choose(study, results)
    assert choices == {"fedavg": Choice(0.01), "svd": Choice(0.001, "lowest"), POOLED: Choice(0.1, "highest")}
    cells = cell_runs(study, choices)
    assert {(run.row, run.config.train.rate) for run in cells} == {("fedavg", 0.01), ("svd", 0.001), (POOLED, 0.1)}
    table = write_table(study, results, tmp_path).read_text(encoding="utf-8")
    assert "| svd | **1.000** | 2.000 | 3.000 | at the lowest of the grid |" in table
    assert "| pooled | 3.000 | 2.000 | **1.500** | at the highest of the grid |" in table
    assert "momentum: not tuned: lr 0.001 failed: diverged" in table


def test_a_learning_rate_that_failed_is_not_chosen(study: Study, tmp_path: Path) -> None:
    results, (low, middle, high) = Results(tmp_path), [study.run("svd", "all", 1, lr) for lr in study.tuning.lr]
    results.add(result(low, 3.0))
    results.add(result(middle, 2.0))
    results.add(failed(high, "diverged"))
    assert choose(study, results) == {"svd": Choice(0.01)}


def test_what_is_not_learned_and_what_a_loss_is_counted_by_stand_in_the_table(study: Study, tmp_path: Path) -> None:
    results = Results(tmp_path)
    counts = {
        "examples": 192,
        "cut_examples": 46,
        "left_out_examples": 546,
        "held_out_examples": 80,
        "loss_unit": "text",
    }
    run_all(study, results, lambda run, workers: result(run, 2.0, **counts))
    table = write_table(study, results, tmp_path).read_text(encoding="utf-8")
    assert "Data: 192 examples trained on, 46 of them cut, 546 left out; 80 measured; on 4 devices." in table
    assert "nats per text" in table
    assert "nats per text" in write_plot(study, results, tmp_path).read_text(encoding="utf-8")
    assert "nats per token" not in table


def test_the_numbers_of_a_table_are_those_computed_by_hand(study: Study, tmp_path: Path) -> None:
    results = Results(tmp_path)
    for row in ROWS:
        for lr in study.tuning.lr:
            results.add(result(study.run(row, "all", 1, lr), 9.0 if lr != 0.01 else 5.0))
    more = {"base_loss": 6.0, "bytes_down": 4000.0, "bytes_up": 2000.0, "aggregation_error": 0.25, "server_s": 0.5}
    for row, losses in {"fedavg": (3.0, 3.5), "svd": (2.0, 2.2), "momentum": (4.0, 4.0)}.items():
        for seed, loss in zip(study.seeds, losses, strict=True):
            own = {"aggregation_error": None, "excluded": {"not-finite": 2}} if row == "momentum" else {}
            results.add(result(study.run(row, "half", seed, 0.01), loss, **(more | own)))
    for seed, loss in zip(study.seeds, (1.0, 1.4), strict=True):
        results.add(result(study.run(POOLED, "half", seed, 0.01), loss))
    found = {line.name: line for line in lines(study, results, "half")}
    assert list(found) == [POOLED, "svd", "fedavg", "momentum", BASE]
    svd = found["svd"]
    assert svd.loss == pytest.approx(2.1)
    assert svd.deviation == pytest.approx(0.2 / math.sqrt(2)), "of a sample: sqrt(2 * 0.1^2 / 1)"
    assert svd.above_pooled == pytest.approx(2.1 - 1.2)
    assert svd.below_base == pytest.approx(6.0 - 2.1)
    assert (svd.kb_down, svd.kb_up, svd.aggregation_error, svd.server_s) == (4.0, 2.0, 0.25, 0.5)
    assert math.isnan(found["momentum"].aggregation_error)
    assert found["momentum"].remarks == ("answers that did not count: 4 not-finite",)
    assert found[BASE].loss == 6.0
    assert found[BASE].above_pooled == pytest.approx(4.8)
    assert found[POOLED].below_base == pytest.approx(4.8)

    table = write_table(study, results, tmp_path).read_text(encoding="utf-8")
    assert "| svd | **2.100 ± 0.141** | **0.900** | **3.900** | **4.0** | **2.0** | **25.0%** | **0.500** |" in table
    assert "| momentum | 4.000 ± 0.000 | 2.800 | 2.000 | **4.0** | **2.0** |  | **0.500** |" in table
    assert "| pooled | 1.200 ± 0.283 |  | 4.800 |  |  |  |  |" in table
    assert "| base | 6.000 | 4.800 |  |  |  |  |  |" in table
    overview = table.partition("## All settings")[2].partition("## all")[0]
    assert "| svd | **5.000** | **2.100 ± 0.141** | 2.350 |\n| fedavg | **5.000** | 3.250 ± 0.354 | 2.925 |" in overview
    # The pooled run has every device in every round: it is the same one in both settings.
    assert overview.index("| pooled | 1.200 ± 0.283 | 1.200 ± 0.283 |  |") < overview.index("| svd |")


def test_a_study_runs_from_its_file_to_its_table_and_does_nothing_the_second_time(tmp_path: Path) -> None:
    path = written(
        tmp_path, ('["fedavg", "svd"]', '["svd"]'), ("[0.01, 0.001, 0.1]", "[0.01]"), ("seeds = [1, 2]", "seeds = [1]"),
        ('momentum = { server.method = "svd", aggregation.optimizer = "fedavgm" }', ""),
        ("devices = 4", "devices = 2"), ("devices = 4", "devices = 2"), ("per_round = 2", "per_round = 1"),
    )  # fmt: skip
    output = tmp_path / "out"
    arguments = ["study", str(path), "-o", str(output), "--workers", "1"]
    first = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    written_lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(r["row"], r["setting"]): r for r in map(json.loads, written_lines)}
    assert found.keys() == {("svd", "all"), (POOLED, "all"), ("svd", "half")}
    assert not [r["failure"] for r in found.values() if r["failure"]]
    base = found["svd", "all"]["base_loss"]
    assert base == found["svd", "half"]["base_loss"]
    assert all(r["loss"] < base for r in found.values())
    both, one = found["svd", "all"], found["svd", "half"]
    assert both["examples"] > 0 < both["held_out_examples"]
    assert "data, all: examples" in first.output
    sentence = f"Data: {both['examples']} examples trained on; {both['held_out_examples']} measured; on 2 devices."
    assert sentence in (output / "table.md").read_text(encoding="utf-8")
    # One device's message: rank 2, as float32, and its head; however many devices there are.
    assert both["bytes_down"] == pytest.approx(one["bytes_down"], rel=0.02)
    assert both["bytes_up"] == pytest.approx(both["bytes_down"], rel=0.02)
    assert {file.name for file in output.iterdir()} == {"results.jsonl", "table.md", "losses.svg"}, (
        "runs themselves are not kept"
    )
    for more in ([], ["--table"]):
        CliRunner().invoke(commands, [*arguments, *more], catch_exceptions=False)
        assert (output / "results.jsonl").read_text(encoding="utf-8").splitlines() == written_lines


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parents[3] / "simulations/studies").glob("*.toml")))
@pytest.mark.parametrize("long", [False, True])
def test_a_study_that_comes_with_fedlora_can_be_read(path: Path, long: bool) -> None:
    study = read_study(path, long=long)
    assert study.name == path.stem
    assert len(study.seeds) >= 3
    config = study.run("svd", study.tuning.setting, study.tuning.seed, study.tuning.lr[0]).config
    assert config.server.evaluate_every == config.server.rounds, "the base and the last round are enough"


def test_all_runs_of_a_study_compute_as_the_first_did_and_its_table_says_how(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(run: Run, workers: int) -> Result:
        train = run.config.train
        return result(run, 2.0, config=dict(run.config.flat()) | {"train.compute": train.compute})

    class Stopped(Recorder):
        def __call__(self, run: Run, workers: int) -> Result:
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            self.asked.append(run)
            return measured(run, workers)

    results = Results(tmp_path)
    for dtype in ("bfloat16", "float32"):  # the machine is busy the second time, and finds otherwise
        monkeypatch.setattr(
            decided_module, "settled", lambda config, dtype=dtype: with_decided(
                config, {"compute": dtype, "kernels": "off", "device": "cpu"}
            ),
        )  # fmt: skip
        if dtype == "bfloat16":
            with pytest.raises(KeyboardInterrupt):
                run_all(study, results, Stopped())
        else:
            run_all(study, results, measured)
    done = [found for run in all_runs(study, results) if (found := results.done(run.digest))]
    assert {found.config["train.compute"] for found in done} == {"bfloat16"}
    table = write_table(study, results, tmp_path).read_text(encoding="utf-8")
    assert "- computed with: compute bfloat16, kernels off, device cpu\n" in table


def test_a_study_does_not_go_on_where_its_runs_cannot_be_computed_as_before(study: Study, tmp_path: Path) -> None:
    results = Results(tmp_path)
    run = tuning_runs(study)[0]
    results.add(result(run, 2.0, config=dict(run.config.flat()) | {"train.device": "cuda:77"}))
    with pytest.raises(ConfigError, match=r"results\.jsonl: the runs so far have .*train\.device = cuda:77, and here"):
        run_all(study, results, Recorder())


def test_a_study_with_results_from_before_devices_were_bounded_goes_on_without_bounds(
    study: Study, tmp_path: Path
) -> None:
    bounded = study.run("svd", "all", 1, 0.01)
    results, config = Results(tmp_path), dict(bounded.config.flat())
    assert as_it_began(study, results) is study
    del config["aggregation.max_weight"]
    results.add(Result(digest="of then", row="svd", setting="all", seed=1, lr=0.01, loss=1.0, config=config))
    then = as_it_began(study, Results(tmp_path)).run("svd", "all", 1, 0.01)
    assert (then.config.aggregation.robust, then.config.aggregation.max_weight) == ("none", 0)
    assert then.digest != bounded.digest, "what computes something else has results of its own"


def test_a_rate_is_chosen_by_what_the_file_says_and_never_by_the_test_set(tmp_path: Path) -> None:
    by_loss = read_study(written(tmp_path))
    results = Results(tmp_path / "out")

    def measured(run: Run, workers: int) -> Result:
        lr = run.config.train.rate
        return replace(
            result(run, {0.001: 1.0, 0.01: 2.0, 0.1: 3.0}[lr]),
            measures={
                "accuracy": {0.001: 0.5, 0.01: 0.9, 0.1: 0.7}[lr],
                "worst_tenth": {0.001: 9, 0.01: 8, 0.1: 7}[lr],
            },
        )

    run_all(by_loss, results, measured)
    chosen = {"loss": Choice(0.001, "lowest"), "accuracy": Choice(0.01), "worst_tenth": Choice(0.1, "highest")}
    for measure, choice in chosen.items():
        by = read_study(written(tmp_path, ("seed = 1\n", f'seed = 1\nchoose_by = "{measure}"\n')))
        assert choose(by, results) == dict.fromkeys(ROWS, choice)
    assert "Final held-out loss of the worst tenth by `train.lr`" in write_table(by, results, tmp_path).read_text()
    for wrong in ("test", "test_accuracy"):
        with pytest.raises(ConfigError, match=r"tuning\.choose_by must be one of loss, .*the test set chooses nothing"):
            read_study(written(tmp_path, ("seed = 1\n", f'seed = 1\nchoose_by = "{wrong}"\n')))


def test_a_score_without_labels_or_without_its_numbers_is_refused_before_the_first_run(tmp_path: Path) -> None:
    results = Results(tmp_path / "out")
    by = read_study(written(tmp_path, ("seed = 1\n", 'seed = 1\nchoose_by = "accuracy"\n')))
    refusal = (
        r"choose_by is accuracy, and .*nano \(llama\) has no labels, nor the data multiple choice, .*; choose by loss"
    )
    with pytest.raises(ConfigError, match=refusal):
        check_study(by, results)
    old = read_study(written(tmp_path, ("seed = 1\n", 'seed = 1\nchoose_by = "median_loss"\n')))
    results.add(result(tuning_runs(old)[0], 1.0))
    with pytest.raises(ConfigError, match=r"ran when only its loss was kept, and tuning\.choose_by is median_loss"):
        check_study(old, results)


def test_measures_are_of_all_devices_and_scores_only_where_all_have_labels() -> None:
    loss, examples = {"a": 1.0, "b": 2.0, "c": 6.0}, {"a": 1, "b": 1, "c": 2}
    found = measures_of(loss, examples, {"a": 0.5, "b": 0.25, "c": 1.0}, {"accuracy": 0.6, "macro_f1": 0.5, "mcc": 0.1})
    assert found == {
        "loss": 3.0, "weighted_loss": 3.75, "median_loss": 2.0, "worst_tenth": 6.0, "accuracy": 0.6, "macro_f1": 0.5,
        "mcc": 0.1, "worst_tenth_accuracy": 0.25,
    }  # fmt: skip
    assert set(found) == set(CHOOSE_BY)
    assert set(measures_of(loss, examples, {"a": 0.5}, {"accuracy": 0.5})) == set(LOSSES)
