"""The replies of one round: each is checked, counted in the round's record, and added to what the round makes."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from fedlora.counted import counted
from fedlora.errors import RunError, UpdateError
from fedlora.identity.records import Given
from fedlora.lora.adapter import Adapter
from fedlora.wire.update import decode_update, payload

from fedlora_server.aggregation.aggregation import Aggregation, Round, norms
from fedlora_server.aggregation.optimizers import Moments
from fedlora_server.checks import Expectation
from fedlora_server.copies import Copies
from fedlora_server.device_names import DeviceNames
from fedlora_server.replies import Reply, printable
from fedlora_server.run.chain import Contribution
from fedlora_server.run.round_record import MAX_LOSS, RoundRecord
from fedlora_server.stopwatch import Stopwatch

log = logging.getLogger("fedlora.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the devices of one round were asked, and what a sound reply to it looks like."""

    message: bytes  # that went down
    unchanged: bytes  # the update of a device that changes nothing
    expectation: Expectation
    most_bytes: int  # of a reply

    @property
    def server_round(self) -> int:
        return self.expectation.server_round


class Intake:
    """One round's replies, on their way from the exchange to the aggregation."""

    def __init__(self, record: RoundRecord, this: Round, names: DeviceNames, unchanged: bytes) -> None:
        """`unchanged` is the update of a device that changes nothing, which any number of them may send."""
        self._record, self._this, self._names = record, this, names
        self._copies = Copies(payload(unchanged))
        self._added: list[tuple[Reply, Mapping[str, float]]] = []  # with what each says of its training
        self._heard = set[int]()  # nodes that said who they are
        self._first: dict[str, str] = {}  # what the first device of each reason said
        self._examples: dict[int, int] = {}  # of the devices whose updates were added
        self._digests: dict[int, str] = {}  # sha256 of what the same sent
        self._took: dict[int, float] = {}  # seconds, of the same
        self._late = list[int]()  # of those added: the commits since their adapters
        self._watch = Stopwatch()

    @property
    def devices(self) -> set[int]:
        """The nodes whose updates were added."""
        return {reply.node for reply, _ in self._added}

    def take(self, reply: Reply, asked: Asked, factor: float = 1.0) -> bool:
        """Add a sound reply to `asked`, of this round or an earlier one, whose change then counts `factor` times.

        Any other one is counted by its reason; False then.
        """
        record, then, before_s = self._record, asked.expectation.adapter, self._watch.seconds
        if reply.device != str(reply.node):
            self._heard.add(reply.node)
        with self._watch:
            try:
                if reply.error:
                    raise UpdateError(reply.reason, reply.error)
                record.bytes_up += len(reply.data)
                digest = reply.proof.payload if reply.proof else sha256(reply.data).hexdigest()
                update = decode_update(reply.data, lambda: then)
                asked.expectation.check(update)
                late = record.round - asked.server_round
                gives_way = self._copies.check(reply.node, reply.device, payload(reply.data))
                if gives_way is not None:
                    self._take_back(gives_way, reply, update.adapter, late)
            except UpdateError as error:
                self.exclude(reply, error.reason, str(error))
                return False
            if late:
                self._this.add_late(update.adapter, update.num_examples, then, factor)
            else:
                self._this.add(update.adapter, update.num_examples)
            self._late.append(late)
            self._added.append((replace(reply, data=b""), update.metrics))  # the aggregator has its numbers
            self._digests[reply.node] = digest
            self._examples[reply.node] = update.num_examples
            record.replies += 1
        self._took[reply.node] = self._watch.seconds - before_s
        return True

    def _take_back(self, node: int, instead: Reply, adapter: Adapter, late: int) -> None:
        """Let what `node` sent not count: it is equal to `adapter`, which `instead` has sent.

        Raises UpdateError where one of the two is late: the first then counts.
        """
        place = next(place for place, (reply, _) in enumerate(self._added) if reply.node == node)
        if late or self._late[place]:
            raise UpdateError(
                "duplicate", f"the numbers are those of device {self._added[place][0].device}: they count once"
            )
        self._this.remove(adapter, self._examples.pop(node))
        reply, _ = self._added.pop(place)
        del self._late[place]
        self._record.replies -= 1
        self.exclude(reply, "duplicate", f"the numbers are those of device {instead.device}: they count once")

    def exclude(self, reply: Reply, reason: str, why: str) -> None:
        """Count a reply that is not added."""
        self._record.excluded[reason] += 1
        said = f"device {self._names.known(reply)}: {printable(why)}"
        self._first.setdefault(reason, said)
        log.warning("round %d: excluded (%s): %s", self._record.round, reason, said)

    def name_devices(self, asked: Collection[int], connected: Collection[int]) -> None:
        """Enter what the devices say of their training, under their names: once it is known who did not answer."""
        record = self._record
        self._names.round_over(asked, self._heard, connected)
        for reply, metrics in sorted(self._added, key=lambda pair: pair[0].node):  # in whichever order they came
            if metrics:
                name = self._names.of(reply, record.nodes)
                record.costs[name] = {**reply.costs, "server_s": self._took[reply.node]}
                record.count_train(name, metrics)
                if 0 <= metrics.get("train_loss", math.nan) <= MAX_LOSS:
                    record.train_loss[name] = metrics["train_loss"]
        if any(self._late):
            record.staleness = {"mean": sum(self._late) / len(self._late), "most": max(self._late)}

    def given(self) -> list[Contribution]:
        """What each device gave, in the order of their names: the same in whichever order they came."""
        found = []
        for reply, _ in self._added:
            proof = reply.proof
            given = Given(
                device=self._names.known(reply),
                key=proof.key.keyid if proof else "",
                update=self._digests[reply.node],
                examples=self._examples[reply.node],
            )
            found.append(
                Contribution(given=given, answer=proof.answer if proof else b"", key=proof.key if proof else None)
            )
        return sorted(found, key=lambda each: (each.given.device, each.given.update))

    def refuse_few(self, wanted: int, asked: int, timeout_s: float) -> None:
        """Raise RunError where fewer than `wanted` devices gave a sound reply."""
        record, devices = self._record, len(self.devices)
        if devices < wanted:
            raise RunError(
                f"round {record.round}: {devices} of {counted(asked, 'device')} gave a sound answer within "
                f"{timeout_s:g} s, the run needs {wanted} (excluded: {dict(record.excluded)}); the adapter of round "
                f"{record.round - 1} stands" + "".join(f"; {said}" for said in self._first.values())
            )

    def result(self, aggregation: Aggregation) -> tuple[Adapter, Moments]:
        """What the round commits. Raises RunError or AdapterError, and nothing is committed."""
        record, this = self._record, self._this
        with self._watch:
            state = this.result()
            if this.left_out:
                record.excluded[aggregation.rule] += len(this.left_out)
                left_out = ", ".join(self._added[k][0].device for k in this.left_out)
                log.info("round %d: %s gave no weight to %s", record.round, aggregation.rule, left_out)
            committed = aggregation.committed(state)
            committed.check_finite(f"round {record.round}")
            distance = this.error(committed)
            record.aggregation_error = distance if distance is not None and math.isfinite(distance) else None
            record.norms = norms(committed)
        record.server_s += self._watch.seconds
        return committed, state.moments
