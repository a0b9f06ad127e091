"""What the service does with a question: the device's policy first, then the work, then what it remembers of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedlora.base.pack import EMBEDDED
from fedlora.config.run import RunConfig, Scalar
from fedlora.errors import ConfigError, FedloraError, PolicyError
from fedlora.identity.statement import Statement
from fedlora.wire.update import Update

from fedlora_client.answers import answer
from fedlora_client.courier.question import Answer, Question
from fedlora_client.data.version import version_of
from fedlora_client.device import Device
from fedlora_client.opened import forget_data, forget_models
from fedlora_client.policy.day_counts import DayCounter
from fedlora_client.policy.machine import HERE, Machine
from fedlora_client.service.committed import MAX_NAME, CommittedAdapters, run_digest
from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.kept_answer import KeptAnswer, digest_of
from fedlora_client.service.signing import Signing, check_of
from fedlora_client.service.state import StateFolder, Told, now_text
from fedlora_client.training.energy import EnergyMeter
from fedlora_client.training.memory import forget_peak, peak_bytes, resident_bytes
from fedlora_client.training.planning import plan_training
from fedlora_client.training.wanted import while_wanted

log = logging.getLogger("fedlora.device")
_LOOK_EVERY_S = 5.0  # at power and time, while it works
_MOST_TOLD = 500  # characters of what an answer says, on this side

IsWanted = Callable[[], bool]


class DeviceWork:
    """Answers questions, one at a time."""

    def __init__(
        self, config: DeviceConfig, *, machine: Machine = HERE, now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._config, self._machine, self._now = config, machine, now
        self._folder = StateFolder(config.state)
        self._folder.make()
        self._counter = DayCounter(config.state / "day.json")
        self._kept = KeptAnswer(config.state / "answer")
        self._committed = CommittedAdapters(config.adapters, self._folder, config.serve.keep)
        self._signing = Signing.of(config)
        self._said: Statement | None = None  # the present question, where the server signs
        self._data_version = self._base_version = ""
        self._last: dict[str, Any] = {}  # what the present question is about, as far as it is known
        self.told = Told.begun(
            self._folder, name=config.device.name, base=config.device.base, config=str(config.path),
            policy=list(config.policy.words()), notice=self._counter.notice,
        )  # fmt: skip

    def __call__(self, question: Question, is_wanted: IsWanted) -> Answer:
        began, meter = time.monotonic(), EnergyMeter(self._machine.root)
        self._last = {}
        forget_peak()
        self.told.say(doing=f"{question.kind} for Flower's run {question.run_id}, since {now_text()}")
        try:
            self._said = self._signing.check(question) if self._signing else None
            given = self._answer(question, is_wanted)
            if self._signing and self._said:
                given = self._signing.signed(given, self._said)
        except FedloraError as error:
            given = self._refused(error)
        finally:
            self.told.say(doing="waiting")
        if given.refusal:
            self.told.refuse(given.refusal, given.said)
        elif given.said:
            self.told.refuse("device-error", given.said)
        self._count_bytes(len(given.data))
        energy = meter.joules()
        self._folder.add_round(
            {
                "at": now_text(), "kind": question.kind, **self._last,
                "loss": given.metrics.get("train_loss", given.metrics.get("loss")),
                "seconds": round(time.monotonic() - began, 3), "bytes_down": len(question.data or b""),
                "bytes_up": len(given.data), "rss_mb": round(resident_bytes() / 1e6), "peak_mb": round(peak_bytes() / 1e6),
                "joules": energy and round(energy[0], 2), "energy_of": energy and energy[1],
                "refusal": given.refusal or ("device-error" if given.said else ""), "said": given.said[:_MOST_TOLD],
            }
        )  # fmt: skip
        log.info("%s: %s", question.kind, given.said[:_MOST_TOLD] or f"done in {time.monotonic() - began:.1f} s")
        return given

    def _answer(self, question: Question, is_wanted: IsWanted) -> Answer:
        self._count_bytes(len(question.data or b""))
        try:
            config = RunConfig.from_flat(question.run_config, "run configuration")
            self._check_paused()
            self._config.policy.check_run(config)
            self._config.policy.check_power(self._now(), self._machine)
            self._config.policy.check_idle(self._machine)
            node = self._node(config)
        except FedloraError as error:
            return self._refused(error)
        flat = {**question.run_config, **self._data_of(config)}
        kept = self._kept.of(question, self._data_version + self._base_version)
        if kept is not None:
            log.info("the answer to this question was kept from before")
            return kept
        guard = _Guard(self, is_wanted)
        with while_wanted(guard):
            given = answer(replace(question, run_config=flat), node, guard.allow(question))
        if guard.refusal is not None:
            return self._refused(guard.refusal)
        if question.kind == "train" and not given.said:
            self._kept.keep(question, self._data_version + self._base_version, given)
        return given

    def allow(self, question: Question, device: Device, update: Update) -> None:
        """Raise PolicyError where the device does not do this; remember that it does."""
        policy, is_training = self._config.policy, question.kind == "train"
        run_name = device.config.name[:MAX_NAME]
        self._last = {"run": run_name, "round": update.server_round}
        if self._said is not None:
            check_of(self._said, update)
        policy.check_base(device.model.base.fingerprint)
        said = self._committed.offer(device, update, question.kind)
        # By what is asked: another question under the same number is another round's work.
        name = f"{run_digest(update)}/{update.server_round}/{digest_of(question, '')[:16]}" if is_training else None
        counts = self._counter.today(self._now().date())
        counts.check(policy, name, len(question.data or b"") if is_training else 0)
        if is_training:
            policy.check_examples(device.account().train)
            if policy.min_examples:
                drawn = device.examples_of_round(update.server_round, update.task)
                policy.check_examples(drawn, "in the batches that this round draws")
            self._check_memory(device, update)
        self._keep_counts(counts.with_measurement() if name is None else counts.with_round(name))
        what = f"{question.kind}, round {update.server_round} of {run_name}, since {now_text()}"
        fingerprint = device.model.base.fingerprint
        self.told.say(doing=what, base_fingerprint=fingerprint, base_error="", adapter_error=said)

    def check_power(self) -> None:
        self._check_paused()
        self._config.policy.check_power(self._now(), self._machine)

    def _check_paused(self) -> None:
        if self._config.paused.exists():
            raise PolicyError("policy-paused", "its owner has paused it; fedlora device resume lets it take part")

    @property
    def max_seconds(self) -> float:
        return self._config.policy.max_seconds

    def _check_memory(self, device: Device, update: Update) -> None:
        if not self._config.policy.max_memory_mb:
            return
        try:
            plan_training(device.model, [update.adapter], device.config.train, update.task.trains, update.frozen)
        except ConfigError as error:
            raise PolicyError("policy-memory", f"policy.max_memory_mb must hold the training: {error}") from None

    def _node(self, config: RunConfig) -> dict[str, Scalar]:
        """The node configuration by which a device of this process is made. Raises ConfigError where it has no data."""
        mine, policy = self._config, self._config.policy
        if not mine.data.source:
            raise ConfigError(f"{mine.path}: data.source is missing; name the file or folder to train on")
        version = version_of(Path(mine.data.source), mine.withdrawn)
        if version != self._data_version:
            forget_data()
        base_version = "" if mine.device.base == EMBEDDED else version_of(Path(mine.device.base))
        if base_version != self._base_version:
            forget_models()
        self._data_version, self._base_version = version, base_version
        bounds = [mb for mb in (policy.max_memory_mb, config.train.memory_mb) if mb]
        node: dict[str, Scalar] = {
            "name": mine.device.name, "base": mine.device.base, "data-path": mine.data.source,
            "data-withdrawn": str(mine.withdrawn), "data-version": version, "state-path": str(mine.state / "training"),
            "memory-mb": min(bounds, default=0), "max-rank": policy.max_rank,
        }  # fmt: skip
        return node | ({"data-query": mine.data.query} if mine.data.query else {})

    def _data_of(self, config: RunConfig) -> dict[str, Scalar]:
        """What of the run's configuration the device knows better: a server does not choose what it reads."""
        named = self._config.data.fields
        fields = {
            f"data.fields.{part.name}": getattr(named if named.given() else config.data.fields, part.name)
            for part in dataclasses.fields(named)
        }
        return {"data.name": "files", "data.path": "", **fields}

    def _count_bytes(self, count: int) -> None:
        self._keep_counts(self._counter.today(self._now().date()).with_bytes(count))

    def _keep_counts(self, counts: Any) -> None:
        with suppress(OSError, ConfigError):  # a full disk: they count in this process
            self._counter.keep(counts)

    def _refused(self, error: FedloraError) -> Answer:
        reason = error.reason if isinstance(error, PolicyError) else ""
        return Answer(device=self._config.device.name, refusal=reason, said=str(error))


class _Guard:
    """Says whether a piece of work is still wanted: by who asked, and by the device's own policy."""

    def __init__(self, work: DeviceWork, is_wanted: IsWanted) -> None:
        self._work, self._is_wanted = work, is_wanted
        self._until: float | None = None
        self._look_at = 0.0
        self.refusal: PolicyError | None = None

    def __call__(self) -> bool:
        if not self._is_wanted():
            return False
        now = time.monotonic()
        if self._until is not None and now > self._until:
            seconds = self._work.max_seconds
            self.refusal = PolicyError(
                "policy-seconds", f"it took longer than policy.max_seconds allows, {seconds:g} s"
            )
        elif now > self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            try:
                self._work.check_power()
            except PolicyError as refusal:
                self.refusal = refusal
        return self.refusal is None

    def allow(self, question: Question) -> Callable[[Device, Update], None]:
        def allow(device: Device, update: Update) -> None:
            self._work.allow(question, device, update)
            if self._work.max_seconds:
                self._until = time.monotonic() + self._work.max_seconds

        return allow
