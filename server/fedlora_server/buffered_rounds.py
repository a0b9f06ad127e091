"""Rounds that do not wait: an adapter is committed for every K sound updates, whoever they come from, and when.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff), 2022 (arXiv:2106.06639). A device that
has answered is asked again at once, with the newest adapter, so that fast devices never wait for slow ones.
What a slow one changed is added to what was committed meanwhile, and counts 1 / (1 + tau) ^ server.staleness_exponent after
tau commits (`methods/moved.py` says what is added); after more than server.max_staleness it counts as `stale`.
Of one commit a device gives at most the share server.max_share, rounded up; then it is not asked again before the next one,
unless nobody else could give an update. So a fast device is not alone in what is committed.

The method, its robust rule, its optimizer and its error are those of any round: a round here is what makes a commit.
The order of arrival depends on time, and with it what is committed; with one worker, a simulation is repeatable.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from fedlora.counted import counted
from fedlora.errors import FedloraError

from fedlora_server.exchange import EVALUATE, TRAIN, Outstanding
from fedlora_server.intake import Asked, Intake
from fedlora_server.leader import Leader
from fedlora_server.replies import Reply
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory

log = logging.getLogger("fedlora.server")

_LOOK_S = 1.0  # between two looks at who is connected
_EARLIER = 4  # rounds of which what went down is kept in memory; what else a reply needs is read back
STALE = "stale"


@dataclass(slots=True)
class _Measuring:
    """A committed round that devices measure as they become free."""

    record: RoundRecord
    message: bytes
    asked: set[int] = field(default_factory=set)  # nodes
    replies: list[Reply] = field(default_factory=list)
    waiting: int = 0  # for so many


class BufferedRounds:
    """The rest of a run, commit by commit."""

    def __init__(self, leader: Leader, directory: RunDirectory) -> None:
        self._leader, self._directory = leader, directory
        self._server, self._seed = leader.config.server, leader.config.seed
        self._most_of_one = math.ceil(round(self._server.max_share * self._server.buffer_size, 6))
        self._out = Outstanding(leader.grid)
        self._earlier: dict[int, Asked] = {}
        self._times: dict[int, tuple[int, int]] = {}  # by node: the round it was asked for last, and how often
        self._measured: list[_Measuring] = []
        self._look_at, self._connected = 0.0, list[int]()
        self._draws = 0

    def run(self) -> None:
        """Raises RunError; what was committed before stays."""
        for server_round in range(self._directory.last_round + 1, self._server.rounds + 1):
            record = self._round(server_round)
            if self._leader.is_measured(server_round):
                state = self._leader.state_after(server_round, self._directory)
                self._measured.append(_Measuring(record, self._leader.to_measure(server_round, state)))
            else:
                self._write(record)
            self._write_measured()
        self._finish()

    def _round(self, server_round: int) -> RoundRecord:
        """One commit: of K sound updates, of at least server.min_devices devices, or of what came in time."""
        record, began = RoundRecord(server_round), time.monotonic()
        leader, server = self._leader, self._server
        try:
            this = leader.aggregation.round(leader.state_after(server_round - 1, self._directory), server_round)
            self._down = this.down
            now = self._earlier[server_round] = leader.asked(server_round, this.down)
            intake = Intake(record, this, leader.names, now.unchanged)
            self._collect(record, intake, now, began + server.round_timeout_s)
            intake.name_devices(self._left_out | intake.devices, self._connected)
            intake.refuse_few(server.min_devices, record.devices, server.round_timeout_s)
        except FedloraError:
            leader.came_to_nothing(record, began, self._directory)
            raise
        leader.commit(record, intake, began, self._directory)
        return record

    def _collect(self, record: RoundRecord, intake: Intake, now: Asked, until: float) -> None:
        """Take replies until the commit has its updates, nobody is left who could send one, or the time is up."""
        self._left_out = set[int]()  # nodes that are not asked again before the next commit
        self._gave = Counter[int]()  # sound updates of this commit, by node
        while record.replies < self._server.buffer_size or len(intake.devices) < self._server.min_devices:
            self._ask_those_who_are_free(record, now)
            nobody_is_left = bool(self._connected) and self._out.is_empty
            if nobody_is_left or time.monotonic() >= until:
                return
            reply = self._out.next(min(until, self._look_at))
            for one in [reply] if reply else self._out.overdue():
                if one.kind == EVALUATE:
                    self._take_measurement(one)
                else:
                    self._take(record, intake, one, now)
            if not reply and self._out.is_empty:
                time.sleep(max(0.0, min(until, self._look_at) - time.monotonic()))

    def _take(self, record: RoundRecord, intake: Intake, reply: Reply, now: Asked) -> None:
        """Add a sound update. A device whose answer was none is left alone until the next commit."""
        record.devices += 1
        late = now.server_round - reply.server_round
        if late > self._server.max_staleness and not reply.error:
            record.bytes_up += len(reply.data)
            intake.exclude(reply, STALE, f"the adapter that it began with is {counted(late, 'commit')} old")
            return
        factor = (1 + late) ** -self._server.staleness_exponent
        if intake.take(reply, self._asked(reply.server_round), factor):
            self._gave[reply.node] += 1
        else:
            self._left_out.add(reply.node)

    def _asked(self, server_round: int) -> Asked:
        """What went down for a round, which may be an earlier one."""
        if server_round not in self._earlier:
            state = self._leader.state_after(server_round - 1, self._directory)
            down = self._leader.aggregation.down(state, server_round)
            self._earlier[server_round] = self._leader.asked(server_round, down)
        asked = self._earlier[server_round] = self._earlier.pop(server_round)  # the last one that was used
        while len(self._earlier) > _EARLIER:
            del self._earlier[next(iter(self._earlier))]
        return asked

    def _ask_those_who_are_free(self, record: RoundRecord, now: Asked) -> None:
        if time.monotonic() >= self._look_at:
            self._connected = sorted(self._leader.grid.get_node_ids())
            self._look_at = time.monotonic() + _LOOK_S
        busy = self._out.nodes(TRAIN) | self._out.nodes(EVALUATE)
        free = [node for node in self._connected if node not in busy]
        if self._measured:  # once for each adapter, before anything else
            to_measure = [node for node in free if node not in self._measured[-1].asked]
            self._ask_to_measure(self._measured[-1], to_measure)
            free = [node for node in free if node not in to_measure]
        free = [
            node
            for node in self._leader.trainable(free)
            if node not in self._left_out and not self._has_given_its_share(node)
        ]
        for node in self._drawn(free, record.round):
            again = self._again(node, now.server_round)
            message = self._leader.asked(now.server_round, self._down, again).message if again else now.message
            self._out.send([node], TRAIN, message, now.server_round, self._server.round_timeout_s, now.most_bytes)
            record.bytes_down += len(message)

    def _has_given_its_share(self, node: int) -> bool:
        others = set(self._leader.trainable(self._connected)) - self._left_out - {node}
        return self._server.max_share < 1 and self._gave[node] >= self._most_of_one and bool(others)

    def _drawn(self, free: list[int], server_round: int) -> list[int]:
        """Of the free devices as many as may train besides those that do."""
        at_once = self._server.devices_per_round
        more = len(free) if not at_once else max(0, at_once - len(self._out.nodes(TRAIN)))
        if more >= len(free):
            return free
        self._draws += 1
        generator = np.random.default_rng([self._seed, server_round, self._draws])
        return [free[position] for position in sorted(generator.choice(len(free), more, replace=False).tolist())]

    def _again(self, node: int, server_round: int) -> int:
        """How often the node was asked for this round before."""
        last, times = self._times.get(node, (0, 0))
        times = times + 1 if last == server_round else 0
        self._times[node] = server_round, times
        return times

    def _ask_to_measure(self, measured: _Measuring, nodes: list[int]) -> None:
        record = measured.record
        self._out.send(nodes, EVALUATE, measured.message, record.round, self._server.round_timeout_s)
        measured.asked |= set(nodes)
        measured.waiting += len(nodes)
        record.bytes_down += len(measured.message) * len(nodes)

    def _take_measurement(self, reply: Reply) -> None:
        for measured in self._measured:
            if measured.record.round == reply.server_round:
                measured.waiting -= 1
                if self._leader.is_loss(measured.record, reply):
                    measured.replies.append(reply)

    def _write_measured(self) -> None:
        """Write the lines of those rounds that nobody measures any more."""
        for measured in self._measured[:-1]:
            if not measured.waiting:
                self._measured.remove(measured)
                self._enter(measured)
                self._write(measured.record)

    def _finish(self) -> None:
        """Nobody trains any more, and every device measures the last adapter."""
        self._out.give_up(kind=TRAIN)
        until = time.monotonic() + self._server.round_timeout_s
        while (reply := self._out.next(until)) is not None:
            self._take_measurement(reply)
        self._out.give_up()
        for measured in self._measured:
            record = measured.record
            self._enter(measured)
            if record.round == self._server.rounds:
                record.measured_of = len(self._leader.trainable([reply.node for reply in measured.replies]))
                told = {reply.node for reply in measured.replies}
                state = self._leader.state_after(record.round, self._directory)
                self._leader.measure(record, state, [node for node in self._connected if node not in told])
            self._write(record)

    def _enter(self, measured: _Measuring) -> None:
        self._leader.enter_losses(measured.record, measured.replies)
        measured.record.measured_of = len(self._leader.trainable(measured.asked))

    def _write(self, record: RoundRecord) -> None:
        self._directory.add_metrics(record)
        log.info("%s", record.summary(self._server.rounds))
