"""Paths are texts or Paths wherever somebody gives one to a package's face."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedlora import RunConfig, open_pack
from fedlora.config.sections import DataConfig
from fedlora.errors import ConfigError
from fedlora_serve import ServeConfig
from fedlora_server import RunDirectory, open_run, read_metrics
from fedlora_simulations import Results, read_study, rounds_table, simulate, write_report

PACKAGES = ("fedlora", "fedlora_client", "fedlora_server", "fedlora_export", "fedlora_serve", "fedlora_simulations")
ROOT = Path(__file__).parents[1]
# What the package makes itself: its fields are for reading.
MADE_BY_THE_PACKAGE = {"BasePack", "LoadedAdapter", "Study"}


def callables() -> Iterator[tuple[str, object]]:
    for package in PACKAGES:
        face = importlib.import_module(package)
        for name in face.__all__:
            found = getattr(face, name)
            if inspect.isclass(found) and name not in MADE_BY_THE_PACKAGE:
                methods = inspect.getmembers(found, inspect.isroutine)
                yield from ((f"{package}.{name}.{key}", method) for key, method in methods if not key.startswith("_"))
            if name not in MADE_BY_THE_PACKAGE:
                yield f"{package}.{name}", found


def test_what_takes_a_path_takes_a_text_and_what_takes_a_place_as_text_takes_a_path() -> None:
    wrong = []
    for name, found in callables():
        try:
            signature = inspect.signature(found)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        for parameter in signature.parameters.values():
            kinds = {part.strip() for part in str(parameter.annotation).split("|")}
            if "Path" in kinds and "str" not in kinds:
                wrong.append(f"{name}: {parameter}")
    assert wrong == []


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_and_what_reads_it_take_either(tmp_path: Path, kind: type) -> None:
    for number in range(2):
        (tmp_path / "texts" / str(number)).mkdir(parents=True)
        (tmp_path / "texts" / str(number) / "a.txt").write_text("".join(f"line {n} of many\n" for n in range(120)))
    values = {
        "lora.rank": 2, "train.steps": 1, "train.batch_size": 1, "train.sequence_length": 16, "server.rounds": 1,
        "simulation.devices": 2, "server.evaluate": False,
    }  # fmt: skip
    plain = RunConfig.from_flat(values, "test")
    config = RunConfig(
        base=kind(open_pack("nano").directory), output=kind(tmp_path / "run"), lora=plain.lora, train=plain.train,
        server=plain.server, simulation=plain.simulation, data=DataConfig(name="files", path=kind(tmp_path / "texts")),
    )  # fmt: skip
    assert RunConfig.from_flat(config.flat(), "flat") == config
    run = kind(simulate(config, workers=1))
    assert len(read_metrics(run)) == 2
    assert rounds_table(run).row_count == 2
    assert write_report(run) == tmp_path / "run" / "report.html"
    assert RunDirectory.adapter_of(run, 1) == tmp_path / "run" / "rounds" / "0001" / "adapter"
    with open_run(kind(tmp_path / "another"), config, open_pack("nano"), "07") as directory:
        assert directory.path == tmp_path / "another"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_study_and_a_service_take_either(tmp_path: Path, kind: type) -> None:
    study = read_study(kind(ROOT / "simulations" / "studies" / "methods-stdlib.toml"))
    assert study.file.name == "methods-stdlib.toml"
    assert Results(kind(tmp_path)).path == tmp_path / "results.jsonl"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_study(kind(tmp_path / "gone.toml"))
    config = ServeConfig(adapters={"mine": kind("a/b")}, adapter_folder=kind("c"))
    assert (config.adapters, config.adapter_folder) == ({"mine": "a/b"}, "c")
