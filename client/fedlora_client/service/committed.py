"""The newest adapter that a server committed, as a PEFT directory on the device.

A measurement after round N brings it; where the server asks for none, what comes down for round N + 1 does.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import DataError, FedloraError
from fedlora.lora.adapter import Adapter
from fedlora.lora.ranks import joined
from fedlora.peft.directory import CONFIG, PeftDirectory, write_peft
from fedlora.wire.update import Update

from fedlora_client.answer_ends import answer_ends_files
from fedlora_client.courier.question import Kind
from fedlora_client.device import Device
from fedlora_client.service.state import StateFolder, now_text

log = logging.getLogger("fedlora.device")
RECORD = "adapter"  # of the state folder: which adapter it is
MAX_NAME = 64  # characters of a run's name that are told: a server chose it


@dataclass(frozen=True, slots=True)
class CommittedAdapters:
    """A folder with the newest of them and some before it."""

    folder: Path
    state: StateFolder
    keep: int

    def offer(self, device: Device, update: Update, kind: Kind) -> str:
        """Write what `update` brings if it is new; returns what went wrong, which costs the round nothing."""
        server_round = update.server_round if kind == "evaluate" else update.server_round - 1
        if server_round < 1:
            return ""
        try:
            self._write(device, update, kind, server_round)
        except (OSError, FedloraError) as error:
            said = f"the adapter of round {server_round} was not written: {error}"
            log.warning("%s", said)
            return said
        return ""

    def _write(self, device: Device, update: Update, kind: Kind, server_round: int) -> None:
        before = self.state.read(RECORD)
        run, name = run_digest(update), device.config.name[:MAX_NAME]
        is_same_round = (before.get("run"), before.get("round")) == (run, server_round)
        if is_same_round and kind == "train" and Path(str(before.get("path"))).is_dir():
            return  # measured before, as it was committed: what comes down may be written in another way
        adapter = device.as_used(update.adapter, server_round, task=update.task, run=update.run)
        if update.frozen is not None:
            adapter = joined(adapter, update.frozen)
        digest = _digest(adapter)
        if is_same_round and before.get("digest") == digest and Path(str(before.get("path"))).is_dir():
            return
        path = self.folder / f"{name}-{run[:8]}-{server_round:04d}-{digest[:8]}"
        base, texts = device.model.base, {}
        with suppress(DataError):  # without data there are no answers whose ends could be told
            texts = answer_ends_files(device.model, device.train_windows())
        content = PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint)
        write_peft(path, content, base_name=base.source, replace=True, texts=texts)
        self.state.write(
            RECORD,
            {
                "path": str(path), "name": name, "run": run, "round": server_round, "digest": digest,
                "base": base.fingerprint, "at": now_text(),
                "rank": max((pair.rank for pair in adapter.pairs.values()), default=0),
            },
        )  # fmt: skip
        log.info("the adapter that round %d of %s committed is %s", server_round, name, path)
        self._remove_old(path)

    def _remove_old(self, newest: Path) -> None:
        others = [path for path in self.folder.iterdir() if path != newest and (path / CONFIG).is_file()]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[: -self.keep + 1 or None]:
            shutil.rmtree(path, ignore_errors=True)


def run_digest(update: Update) -> str:
    """What stands for the run's number, which may be of any length."""
    return hashlib.sha256(update.run.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _digest(adapter: Adapter) -> str:
    digest = hashlib.sha256()
    for module, pair in adapter.pairs.items():
        digest.update(f"{module} {pair.lora_A.shape} {pair.lora_B.shape} {adapter.config.scaling_of(module)}".encode())
        digest.update(pair.lora_A.tobytes())
        digest.update(pair.lora_B.tobytes())
    for name, array in adapter.extras.items():
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
