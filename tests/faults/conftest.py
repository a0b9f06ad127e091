"""One fleet for all tests of this folder: a test begins a new run, and finds every device there.

Its devices reach SuperLink through a proxy that fails only where a test says so. `row` keeps what a test saw, in
build/faults.txt as it comes; all rows are printed at the end, as the table of what was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack

from tests.faults.faulty_proxy import FaultyProxy
from tests.faults.fleets import Fleet, free_port
from tests.tiny.checkpoints import tiny_pack, write_checkpoint

ROWS: list[tuple[str, str]] = []
KEPT = Path(__file__).resolve().parents[2] / "build" / "faults.txt"


@pytest.fixture
def row() -> Callable[[str, str], None]:
    """Keep what became of a fault."""

    def keep(fault: str, seen: str) -> None:
        ROWS.append((fault, seen))
        KEPT.parent.mkdir(exist_ok=True)
        with KEPT.open("a", encoding="utf-8") as file:
            file.write(f"{fault}: {seen}\n")

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("faults")
        for fault, seen in ROWS:
            terminalreporter.write_line(f"{fault}: {seen}")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    """A base whose training steps take milliseconds."""
    folder = tmp_path_factory.mktemp("base")
    return tiny_pack(folder / "pack", write_checkpoint(folder / "checkpoint"))


@pytest.fixture(scope="session")
def _made(small_base: BasePack) -> Iterator[tuple[Fleet, FaultyProxy]]:
    superlink = free_port()
    network = FaultyProxy(superlink)
    fleet = Fleet(small_base, port=network.port, listen_port=superlink)
    yield fleet, network
    fleet.end()
    network.close()


@pytest.fixture
def fleet(_made: tuple[Fleet, FaultyProxy]) -> Iterator[Fleet]:
    """The fleet, whose server has ended at the end of a test, however it went."""
    fleet, _ = _made
    yield fleet
    if fleet.server is not None:
        fleet.server.end()


@pytest.fixture
def network(_made: tuple[Fleet, FaultyProxy]) -> FaultyProxy:
    """What is between the devices and SuperLink."""
    return _made[1]


@pytest.fixture(scope="session")
def undisturbed(_made: tuple[Fleet, FaultyProxy]) -> str:
    """The digest of the adapter that a run makes to which nothing happens."""
    fleet, _ = _made
    fleet.begin()
    fleet.finish()
    assert [line["replies"] for line in fleet.rounds()] == [4, 4]
    return fleet.digest()
