"""The rounds of a run: sample, ask, check, aggregate, commit, measure.

Each round begins from what the round before committed, as it is read back from there: a run that was stopped and goes on,
and one that never was, are one and the same. With server.mode = "async" the rounds after the first measurement are those of
`buffered_rounds`.
"""

from __future__ import annotations

import logging
import math
import time

import numpy as np
from fedlora.errors import FedloraError

from fedlora_server.buffered_rounds import BufferedRounds
from fedlora_server.exchange import TRAIN, Late, ask, connected_nodes
from fedlora_server.intake import Intake
from fedlora_server.leader import Leader
from fedlora_server.replies import LATE, NO_ANSWER
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory

log = logging.getLogger("fedlora.server")


class Rounds(Leader):
    """The rounds of a run, each of which waits for its devices."""

    def run(self, directory: RunDirectory) -> None:
        """Measure the base, then run every round; what `directory` holds already is not done again.

        Raises RunError; what was committed before stays.
        """
        self._run = directory.run
        server, last = self.config.server, directory.last_round
        if directory.measured > server.rounds:
            log.info("%s is complete: it has all of its %d rounds", directory.path, server.rounds)
            return
        self._late, self._connected = Late(self.grid), self._nodes()
        if last:
            log.info("%s goes on after round %d of %d", directory.path, last, server.rounds)
        self.names.restore(directory.nodes(), set(self._connected))
        self.restore_who_never_trains(directory)
        self._state = self.state_after(last, directory)
        of_this_kind = last if server.mode == "async" else server.rounds
        for server_round in range(directory.measured, of_this_kind + 1):
            self._round(server_round, directory)
        if server.mode == "async" and last < server.rounds:
            BufferedRounds(self, directory).run()

    def _round(self, server_round: int, directory: RunDirectory) -> None:
        """Train, where the round is not committed yet, and measure."""
        began = time.monotonic()
        if server_round <= directory.last_round:
            record = directory.record(server_round)
        else:
            self._connected = self._nodes()
            record = self._train(server_round, self._sampled(self.trainable(self._connected), server_round), directory)
            began = time.monotonic()
        self._state = self.state_after(server_round, directory)
        if self.is_measured(server_round):
            self.measure(record, self._state, self._connected)
        record.seconds += time.monotonic() - began
        directory.add_metrics(record)
        log.info("%s", record.summary(self.config.server.rounds))

    def _nodes(self) -> list[int]:
        server = self.config.server
        return connected_nodes(self.grid, server.min_devices, server.round_timeout_s)

    def _sampled(self, nodes: list[int], server_round: int) -> list[int]:
        """Those that are asked: server.devices_per_round times server.over_selection of them, rounded up."""
        server = self.config.server
        wanted = math.ceil(round(server.devices_per_round * server.over_selection, 6))
        if not wanted or wanted >= len(nodes):
            return nodes
        generator = np.random.default_rng([self.config.seed, server_round])
        # Positions, not ids: those are integers of 64 bits on both sides of 2^63, of which numpy makes floats.
        return [nodes[position] for position in sorted(generator.choice(len(nodes), wanted, replace=False).tolist())]

    def _train(self, server_round: int, nodes: list[int], directory: RunDirectory) -> RoundRecord:
        """One round of training, committed."""
        record, began = RoundRecord(server_round), time.monotonic()
        try:
            intake = self._collected(record, nodes)
        except FedloraError:
            self.came_to_nothing(record, began, directory)
            raise
        self.commit(record, intake, began, directory)
        return record

    def _collected(self, record: RoundRecord, nodes: list[int]) -> Intake:
        """The sound replies of `nodes`, added as they arrive; of more than are wanted, the first ones."""
        server, this = self.config.server, self.aggregation.round(self._state, record.round)
        asked = self.asked(record.round, this.down)
        intake = Intake(record, this, self.names, asked.unchanged)
        record.devices, record.bytes_down = len(nodes), len(asked.message) * len(nodes)
        wanted = min(len(nodes), server.devices_per_round or len(nodes))
        for reply in ask(
            self.grid, nodes, TRAIN, asked.message, record.round, server.round_timeout_s, asked.most_bytes, self._late
        ):
            intake.take(reply, asked)
            if record.replies == wanted < len(nodes):
                break
        silent = len(nodes) - record.replies - sum(record.excluded.values())
        if silent:
            record.excluded[LATE if record.replies == wanted else NO_ANSWER] += silent
        record.late_answers = self._late.arrived()
        intake.name_devices(nodes, self._connected)
        intake.refuse_few(server.min_devices, len(nodes), server.round_timeout_s)
        return intake
