"""A server that is killed at any moment, or whose disk is full, loses no round: the next one ends with the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.base.quantize import Quantization
from fedlora.config.run import AggregationConfig, RunConfig, ServerConfig, TrainConfig
from fedlora.errors import FedloraError
from fedlora.files.tensor_file import TensorFile, write_tensor_file
from fedlora_server.aggregation.aggregation import Round
from fedlora_server.rounds import Rounds
from fedlora_server.run import metrics_file
from fedlora_server.run.metrics_file import METRICS
from fedlora_server.run.run_directory import RunDirectory, open_run
from flwr.app import Message, MessageType

from tests.server.fake_grid import FINGERPRINT, LORA, SHAPE, FakeGrid, Honest, update_of
from tests.server.records import records_of, without_records
from tests.tiny.checkpoints import tree

ROUNDS = 3
TIMES = ("seconds", "server_s", "costs")
Run = tuple[str, str]  # method, optimizer
RUNS: tuple[Run, ...] = (("svd", "none"), ("fedavg", "fedadam"))

# Children are forked from a process that has imported this and does nothing else: a second each is saved, and no
# thread of this one is in the way.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["fedlora_server.app", "flwr.serverapp"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(kind: Any, name: str, number: int = 2) -> Callable[[FakeGrid], None]:
    """Killed when the function has returned from its call of that number."""

    def prepare(grid: FakeGrid) -> None:
        function, calls = getattr(kind, name), iter(range(1, 1000))

        def dying(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            if next(calls) == number:
                die()
            return result

        setattr(kind, name, dying)

    return prepare


def dies_before(kind: Any, name: str, when: Callable[..., bool]) -> Callable[[FakeGrid], None]:
    """Killed where the function is called with arguments like that."""

    def prepare(grid: FakeGrid) -> None:
        function = getattr(kind, name)

        def dying(*arguments: Any, **options: Any) -> Any:
            if when(*arguments, **options):
                die()
            return function(*arguments, **options)

        setattr(kind, name, dying)

    return prepare


def dies_in_half_a_line(grid: FakeGrid) -> None:
    def half(path: Path, data: bytes) -> None:
        whole = json.loads(data)["round"] < 2
        append(path, data if whole else data[: len(data) // 2])
        if not whole:
            die()

    append, metrics_file._append = metrics_file._append, half


def dies_when_asked(kind: str, server_round: int, node: int) -> Callable[[FakeGrid], None]:
    """Killed while a device does what it is asked."""

    def prepare(grid: FakeGrid) -> None:
        device = grid.devices[node]

        def deadly(message: Message) -> Sequence[Message]:
            if message.metadata.message_type == kind and update_of(message).server_round == server_round:
                die()
            return device(message)

        grid.devices[node] = deadly

    return prepare


PHASES: Mapping[str, Callable[[FakeGrid], None]] = {
    "before the first round, while the base is measured": dies_when_asked(MessageType.EVALUATE, 0, 3),
    "before the first round, with the base measured": dies_after(RunDirectory, "add_metrics", 1),
    "after sampling": dies_after(Rounds, "_sampled"),
    "after the first reply": dies_after(Round, "add", 3 + 1),
    "before the commit": dies_before(
        RunDirectory, "commit", lambda run, adapter, moments, record, **_: record.round == 2
    ),
    "in the middle of the commit": dies_before(Path, "write_text", lambda path, text, **_: '"round": 2' in text),
    "between write and rename": dies_before(Path, "rename", lambda path, target: target.name == "0002"),
    "between rename and the metrics": dies_after(RunDirectory, "commit"),
    "during evaluation": dies_when_asked(MessageType.EVALUATE, 2, 4),
    "before the metrics line": dies_before(RunDirectory, "add_metrics", lambda run, record: record.round == 2),
    "in the middle of the metrics line": dies_in_half_a_line,
    "after the metrics line": dies_after(RunDirectory, "add_metrics", 3),
}


def disk_is_full(grid: FakeGrid) -> None:
    """From the commit of round 2 on no file grows beyond 1000 bytes."""
    commit = RunDirectory.commit

    def on_a_full_disk(*arguments: Any, **options: Any) -> None:
        if arguments[-1].round == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        commit(*arguments, **options)

    RunDirectory.commit = on_a_full_disk  # type: ignore[method-assign]


def base_in(folder: Path) -> BasePack:
    weights = folder / "weights.safetensors"
    if not weights.exists():
        write_tensor_file(weights, [], lambda plan: [])
    return BasePack(
        directory=folder, source="tiny", fingerprint=FINGERPRINT, quantization=Quantization(), model=SHAPE,
        weights=TensorFile(weights),
    )  # fmt: skip


def serve(folder: Path, run: Run, number: int, prepare: Callable[[FakeGrid], None] | None, resume: bool) -> None:
    """What a server process does: play the run in `folder`/run; what is wrong goes to `folder`/error."""
    grid, base = FakeGrid({node: Honest(node) for node in range(1, 6)}), base_in(folder)
    config = RunConfig(
        lora=LORA,
        train=TrainConfig(sequence_length=8),
        server=ServerConfig(method=run[0], rounds=ROUNDS, devices_per_round=3, resume=resume),
        aggregation=AggregationConfig(optimizer=run[1]),
    )
    if prepare:
        prepare(grid)
    try:
        rounds = Rounds(grid, config, base)
        with open_run(folder / "run", config, base, f"{number:016x}") as directory:
            rounds.run(directory)
    except FedloraError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / "error").write_text(f"{type(error).__name__}: {error}")


def serve_phase(folder: Path, run: Run, number: int, phase: str | None, resume: bool) -> None:
    serve(folder, run, number, {**PHASES, "full": disk_is_full}[phase] if phase else None, resume)


def in_a_process(folder: Path, run: Run, phase: str | None = None, *, resume: bool = False, number: int = 1) -> int:
    """The exit code of a server in a process of its own."""
    process = _PROCESSES.Process(target=serve_phase, args=(folder, run, number, phase, resume))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the server hangs"
    return process.exitcode


def left(folder: Path) -> dict[str, object]:
    """What a run left, but for times and where it is."""
    run = folder / "run"
    files: dict[str, object] = dict(tree(run))
    files[METRICS] = [without_times(line) for line in (run / METRICS).read_text().splitlines()]
    for path in run.glob("rounds/*/round.json"):
        files[path.relative_to(run).as_posix()] = without_times(path.read_text())
    return without_records(files) | {"records": records_of(run)}


def without_times(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in TIMES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Run, dict[str, object]]:
    """What each run leaves that nobody stops."""
    result = {}
    for run in RUNS:
        folder = tmp_path_factory.mktemp("whole")
        assert in_a_process(folder, run) == 0
        result[run] = left(folder)
    return result


@pytest.mark.parametrize("phase", PHASES)
def test_a_server_killed(tmp_path: Path, whole: Mapping[Run, dict[str, object]], phase: str) -> None:
    run = RUNS[1]
    assert in_a_process(tmp_path, run, phase) == -signal.SIGKILL
    assert in_a_process(tmp_path, run, resume=True, number=2) == 0
    assert not (tmp_path / "error").exists(), (tmp_path / "error").read_text()
    assert left(tmp_path) == whole[run]


@pytest.mark.parametrize("run", RUNS, ids="+".join)
def test_a_server_killed_again_and_again(tmp_path: Path, whole: Mapping[Run, dict[str, object]], run: Run) -> None:
    phases = list(PHASES)
    assert in_a_process(tmp_path, run, phases[0]) == -signal.SIGKILL
    for number, phase in enumerate(phases, 2):
        in_a_process(tmp_path, run, phase, resume=True, number=number)
    assert in_a_process(tmp_path, run, resume=True, number=99) == 0
    assert left(tmp_path) == whole[run]


def test_a_full_disk_is_one_clear_error_and_costs_no_round(
    tmp_path: Path, whole: Mapping[Run, dict[str, object]]
) -> None:
    run = RUNS[1]
    assert in_a_process(tmp_path, run, "full") == 0
    error = (tmp_path / "error").read_text()
    folder = tmp_path / "run"
    for part in (
        f"RunError: {folder / 'rounds' / '0002'}: round 2 cannot be committed: File too large; ",
        "the adapter of round 1 stands; make room there, then go on with the run: ",
        f"output = {str(folder)!r} and server.resume = true",
    ):
        assert part in error
    assert sorted(path.name for path in (folder / "rounds").iterdir()) == ["0001"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "head.json", "lock", METRICS, "rounds", "run.json",
    ]  # fmt: skip
    assert (folder / METRICS).read_text().endswith("}\n")
    (tmp_path / "error").unlink()
    assert in_a_process(tmp_path, run, resume=True, number=2) == 0
    assert not (tmp_path / "error").exists()
    assert left(tmp_path) == whole[run]


def test_the_lock_of_a_killed_server_does_not_outlive_it(tmp_path: Path) -> None:
    assert in_a_process(tmp_path, RUNS[0], "after sampling") == -signal.SIGKILL
    assert (tmp_path / "run" / "lock").exists()
    assert in_a_process(tmp_path, RUNS[0], resume=True, number=2) == 0
    assert not (tmp_path / "error").exists()
