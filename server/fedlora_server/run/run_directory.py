"""What a run leaves on disk, and what it goes on from after its server was stopped.

config.json        the configuration, every key
run.json           the number of the run, which it keeps however often it goes on, the fingerprint of its base, and what
                   a loss is counted by: token, or text where the base is an encoder
metrics.jsonl      one line per round; round 0 is the base. A round that came to nothing has a line, until it is done again
rounds/0001/       what round 1 committed, whole or not at all: adapter/ in PEFT's format, the state of the server's
                   optimizer, the round's record. Nothing else is needed to go on after it
head.json, keys/   the end of the chain of its rounds, and the keys that signed it: `chain.py`
lock               held by the server that is at work here
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.base.pack import BasePack
from fedlora.config.run import AggregationConfig, RunConfig
from fedlora.counted import ranges
from fedlora.errors import ConfigError, RunError
from fedlora.family import EncoderShape
from fedlora.files.atomic import check_writable, write_text
from fedlora.files.documents import read_object
from fedlora.files.lock_file import is_held
from fedlora.lora.adapter import Adapter
from fedlora.numbered import is_number

from fedlora_server.aggregation.aggregation import with_rule
from fedlora_server.aggregation.optimizers import Moments
from fedlora_server.run.chain import Chain, Contribution, Signer
from fedlora_server.run.metrics_file import METRICS, MetricsFile, read_lines
from fedlora_server.run.resume import check_goes_on
from fedlora_server.run.round_directory import ADAPTER, RECORD, read_round, write_round
from fedlora_server.run.round_record import RoundRecord, read_record
from fedlora_server.run.run_lock import IN_USE, LOCK, locked

CONFIG, RUN, ROUNDS = "config.json", "run.json", "rounds"
# What a run did whose configuration does not have the key.
BEFORE = {"aggregation.max_weight": 0.0, "aggregation.fixed_signs": False, "lora.modules_to_save": ""}
# Of the section `aggregation`: what a run settles when it begins.
LEFT_TO_FEDLORA = ("robust", "max_weight", "fixed_signs")


def default_output(name: str, run: str) -> Path:
    """Where a run goes that names no output: $FEDLORA_HOME/runs, or ~/.fedlora/runs."""
    home = Path(os.environ.get("FEDLORA_HOME") or Path.home() / ".fedlora")
    return home / "runs" / f"{name}-{run}"


def read_config(run: Path) -> RunConfig:
    """The configuration of the run in a directory. Raises ConfigError where there is none."""
    path = run / CONFIG
    if not path.is_file():
        raise ConfigError(f"{run} holds no run: it has no {CONFIG}; name the directory of a run")
    values = read_object(path, ConfigError, "the configuration of a run")
    return RunConfig.from_flat(BEFORE | values, str(path))


def as_it_began(config: RunConfig, run: Path) -> RunConfig:
    """`config`, to go on with `run`: what it leaves to fedlora is as that run has it, whatever a default is by now."""
    began, default = read_config(run).aggregation, AggregationConfig()
    left = [key for key in LEFT_TO_FEDLORA if getattr(config.aggregation, key) == getattr(default, key)]
    settled = dataclasses.replace(config.aggregation, **{key: getattr(began, key) for key in left})
    return dataclasses.replace(config, aggregation=settled)


def read_metrics(run: Path | str) -> list[dict[str, Any]]:
    """The lines of the metrics.jsonl in the directory of a run; what a line lacks is as in a record without it."""
    return [RoundRecord(0).line() | line for line in read_lines(Path(run) / METRICS)]


def devices_to_measure(records: Iterable[Mapping[str, Any]]) -> int:
    """How many devices a run's losses are of, where none is missing: a mean over fewer is another number."""
    return max((max(len(record["loss"]), record.get("measured_of", 0)) for record in records), default=0)


def loss_unit(run: Path | str) -> str:
    """What the losses of a run are counted by: `token`, or `text` where its base is an encoder."""
    try:
        about = read_object(Path(run) / RUN, ConfigError, "a run's number and base")
    except ConfigError:
        return "token"
    return "text" if about.get("loss_unit") == "text" else "token"  # runs of earlier versions do not say


def committed_rounds(run: Path) -> list[int]:
    """The numbers of the rounds that a run committed, in order."""
    rounds = run / ROUNDS
    names = [entry.name for entry in rounds.iterdir()] if rounds.is_dir() else []
    return sorted(int(name) for name in names if is_number(name))


def last_round(run: Path) -> int:
    """The last round that a run committed; 0 where it has none."""
    return max(committed_rounds(run), default=0)


def adapter_of_round(run: Path, server_round: int) -> Path:
    """Where the adapter of a committed round lies. Raises ConfigError, with the rounds that there are."""
    there = committed_rounds(run)
    if not there:
        raise ConfigError(f"{run} has committed no round yet; wait for one, go on with it, or name another run")
    if server_round not in there:
        raise ConfigError(f"{run}: it has no round {server_round}; it has committed {ranges(there)}: name one of these")
    return RunDirectory.adapter_of(run, server_round)


@contextmanager
def open_run(
    path: Path | str, config: RunConfig, base: BasePack, run: str, signer: Signer | None = None
) -> Iterator[RunDirectory]:
    """The directory of a new run, or, with `server.resume`, of the one that goes on: nobody else's while the block runs.

    `run` is the number of a new one; `signer` signs its records. Raises ConfigError where `path` holds a run, or with
    `server.resume` not this one; RunError where it cannot be written.
    """
    path = Path(path)
    if config.server.resume:
        read_config(path)  # before a lock is made in what is no run's directory
    with locked(path):
        try:
            if config.server.resume:
                _go_on(path, config, base)
            else:
                _begin(path, config, base, run)
            directory = RunDirectory(path, base, signer=signer, method=config.server.method)
            directory.begin()
        except OSError as error:
            raise RunError(
                f"{path}: the run cannot begin there: {_said(error)}; make room, or name another output"
            ) from None
        yield directory


class RunDirectory:
    """The directory of a run that its server has to itself; see `open_run`."""

    def __init__(self, path: Path | str, base: BasePack, *, signer: Signer | None = None, method: str = "") -> None:
        self.path, self._base, self._method = Path(path), base, method
        self._metrics = MetricsFile(self.path / METRICS)
        self._chain = Chain(path=self.path, signer=signer)

    def begin(self) -> None:
        """Take up the chain of the run's records. Raises RunError where another server's key has signed it."""
        self._chain.check_goes_on(self.last_round)
        self._write_head()

    @property
    def head(self) -> str:
        """The digest of the last committed round's record; "" before the first."""
        return self._chain.record_of(self.last_round)

    @property
    def run(self) -> str:
        """The number of the run: the same however often it goes on."""
        return _about(self.path)["run"]

    @property
    def last_round(self) -> int:
        """The last round that is committed; 0, the base, always is."""
        return last_round(self.path)

    @property
    def measured(self) -> int:
        """The number of committed rounds, round 0 with them, up to the first that has no line in metrics.jsonl."""
        return min(self._metrics.complete, self.last_round + 1)

    def commit(
        self, adapter: Adapter, moments: Moments, record: RoundRecord, given: Sequence[Contribution] = ()
    ) -> None:
        """Write what a round made of what was `given`. Raises RunError, and the round before stands."""
        directory = self.path / ROUNDS / f"{record.round:04d}"
        if directory.exists():
            raise RunError(f"{directory} exists already: a round is committed once; name another output")
        try:
            self._metrics.keep_up_to(record.round - 1)  # a line from when this round came to nothing, or was undone
            run = self.run

            def add(folder: Path, digests: Mapping[str, str]) -> None:
                self._chain.write(
                    folder,
                    record.round,
                    given,
                    run=run,
                    base=self._base.fingerprint,
                    method=self._method,
                    known=digests,
                )

            write_round(directory, adapter, moments, record, self._base, run, add)
        except (OSError, ConfigError) as error:
            raise self._unwritten(
                f"{directory}: round {record.round} cannot be committed", error, record.round - 1
            ) from None

    def read(self, server_round: int, first: Adapter) -> tuple[Adapter, Moments]:
        """What a round committed. Raises FedloraError where it is damaged."""
        return read_round(self.path / ROUNDS / f"{server_round:04d}", first, self._base, self.run)

    def record(self, server_round: int) -> RoundRecord:
        """The record of a committed round, as training left it."""
        if not server_round:
            return RoundRecord(0)
        return read_record(self.path / ROUNDS / f"{server_round:04d}" / RECORD)

    def nodes(self) -> dict[str, int]:
        """The nodes of all devices that were heard up to the last committed round, by the device's name."""
        nodes: dict[str, int] = {}
        lines = {line["round"]: line for line in read_metrics(self.path)} if self.measured else {}
        for server_round in range(self.measured):
            nodes |= lines[server_round].get("nodes", {})
        for server_round in range(self.measured, self.last_round + 1):
            nodes |= self.record(server_round).nodes
        return nodes

    def never_training(self) -> set[str]:
        """The devices that were measured and never train."""
        return (
            {name for line in read_metrics(self.path) for name in line["never_trained_loss"]}
            if self.measured
            else set()
        )

    def add_metrics(self, record: RoundRecord) -> None:
        """Write one round's line, in place of one that it has. Raises RunError; what is committed stands."""
        try:
            self._metrics.put(record.line())
            self._write_head()
        except (OSError, ConfigError) as error:
            raise self._unwritten(
                f"{self.path / METRICS}: no line for round {record.round} can be written", error, self.last_round
            ) from None

    @staticmethod
    def adapter_of(run: Path | str, server_round: int) -> Path:
        """Where a round's adapter lies in the directory of a run."""
        return Path(run) / ROUNDS / f"{server_round:04d}" / ADAPTER

    def _write_head(self) -> None:
        self._chain.write_head(self.run, self.last_round, (CONFIG, RUN, METRICS))

    def _unwritten(self, what: str, error: OSError | ConfigError, stands: int) -> RunError:
        return RunError(
            f"{what}: {_said(error)}; the adapter of round {stands} stands; make room there, then go on with the run: "
            f"{_how_to_go_on(self.path)}"
        )


def _said(error: OSError | ConfigError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _how_to_go_on(run: Path) -> str:
    return f"output = {str(run)!r} and server.resume = true (a simulation: fedlora resume {run})"


def check_new(path: Path) -> None:
    """Raise ConfigError now where `open_run` would not begin a run at `path`, after all data have been read."""
    _check_holds_none(path)
    if is_held(path / LOCK):
        raise ConfigError(IN_USE.format(run=path))
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: a file lies there; name another output")
    check_writable(path / RUN)


def _check_holds_none(path: Path) -> None:
    if (path / CONFIG).exists() or (path / METRICS).exists() or last_round(path):
        raise ConfigError(
            f"{path} holds a run already; name another output, or go on with that run: {_how_to_go_on(path)}"
        )


def _begin(path: Path, config: RunConfig, base: BasePack, run: str) -> None:
    _check_holds_none(path)
    (path / ROUNDS).mkdir(exist_ok=True)
    unit = "text" if isinstance(base.model, EncoderShape) else "token"
    about = {"run": run, "base_fingerprint": base.fingerprint, "loss_unit": unit}
    write_text(path / RUN, json.dumps(about, indent=2) + "\n")
    _write_config(path, config)  # last: with it the directory holds a run


def _go_on(path: Path, config: RunConfig, base: BasePack) -> None:
    began, config = read_config(path), as_it_began(config, path)
    check_goes_on(began, config, path)
    there = _about(path)["base_fingerprint"]
    if there != base.fingerprint:
        raise ConfigError(
            f"{path} holds a run on another base: its fingerprint is {there} there, {base.fingerprint} here; give "
            "the run its own base"
        )
    for folder, name in ((path / ROUNDS, "[0-9]*"), (path, CONFIG), (path, METRICS)):
        for debris in folder.glob(f".{name}.*"):  # of a process that was killed while it wrote
            if debris.is_dir():
                shutil.rmtree(debris)
            else:
                debris.unlink()
    if last_round(path) < config.server.rounds and _settled(config) != began:
        _write_config(path, config)


def _about(path: Path) -> dict[str, str]:
    """What run.json says."""
    about = read_object(path / RUN, ConfigError, "a run's number and base")
    if not all(isinstance(about.get(key), str) for key in ("run", "base_fingerprint")):
        raise ConfigError(f"{path / RUN}: expected run and base_fingerprint, got {about}; copy the run again")
    return about


def _settled(config: RunConfig) -> RunConfig:
    """The configuration of a run, whether it begins or goes on."""
    return with_rule(dataclasses.replace(config, server=dataclasses.replace(config.server, resume=False)))


def _write_config(path: Path, config: RunConfig) -> None:
    write_text(path / CONFIG, json.dumps(_settled(config).flat(), indent=2) + "\n")
