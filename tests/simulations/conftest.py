"""A scenario small enough for a test, and the command that runs it."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora_simulations.reports import drawing
from fedlora_simulations.reports.charts import Chart

TINY = """
name = "tiny"
base = "{base}"

[data]
name = "stdlib"
max_bytes = 4000

[lora]
rank = 2
alpha = 4

[train]
steps = 2
batch_size = 2
sequence_length = 32
lr = 0.01

[server]
rounds = 2

[simulation]
devices = 2
"""


class Simulator:
    """Runs `fedlora simulate` in this process, one device at a time, so that replies arrive in one order.

    On a tiny base: a run on `nano` takes ten times as long, most of it to measure losses. The documents' runs are on that.
    """

    def __init__(self, folder: Path, base: BasePack) -> None:
        self.folder = folder
        self.scenario = folder / "tiny.toml"
        self.scenario.write_text(TINY.format(base=base.directory), encoding="utf-8")

    def __call__(self, name: str, *changes: str, workers: int = 1) -> tuple[Path, Result]:
        """Run into the directory `name`; return it and what the command said. Raises what the command raises."""
        output = self.folder / name
        arguments = ["simulate", str(self.scenario), "-o", str(output), "--workers", str(workers)]
        for change in changes:
            arguments += ["--set", change]
        return output, CliRunner().invoke(commands, arguments, catch_exceptions=False)


@pytest.fixture(scope="session")
def simulator(base: BasePack, tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    return Simulator(tmp_path_factory.mktemp("simulate"), base)


@pytest.fixture(scope="session")
def tiny_run(simulator: Simulator) -> tuple[Path, Result]:
    """One finished run of the tiny scenario."""
    return simulator("finished")


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report has eight pictures, a second's work: they are drawn where reports are tested, and by the documents' runs."""

    def described(chart: Chart, width: int = 0, **_: object) -> str:
        return f'<svg width="{width}"><desc>{html.escape(repr(chart))}</desc></svg>'

    if request.path.parent.name != "reports" and not request.node.get_closest_marker("browser"):
        monkeypatch.setattr(drawing, "svg", described)
