"""An enrolled grid that signs each instruction, and takes no answer that its device has not signed.

What is signed is in `core/fedlora/identity/statement.py`. The envelope travels beside the update, in a record of its own.
In place of an answer that does not hold stands a refusal with a word to count by, as for one of a revoked device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fedlora.config.run import Scalar
from fedlora.errors import IdentityError
from fedlora.identity.keys import PublicKey
from fedlora.identity.statement import (
    ANSWER,
    INSTRUCTION,
    MAX_BYTES,
    Statement,
    digest,
    digest_of,
    digest_of_config,
    digest_of_metrics,
    read_signed,
    signed,
)
from fedlora.wire.beside import ROTATED, SIGNED, SIGNED_SAID
from fedlora.wire.refusal import REASON, REFUSAL, SAID
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import make_message
from flwr.serverapp import Grid

from fedlora_server.fleet.enrolled_grid import EnrolledGrid
from fedlora_server.fleet.identity import COUNTER, FOLDER, Counter
from fedlora_server.fleet.roll import Roll
from fedlora_server.replies import Proof
from fedlora_server.run.chain import Signer

_MOST_SENT = 100_000  # messages whose instructions are remembered


class Head(NamedTuple):
    """Where the chain of a run's rounds stands."""

    server_round: int  # the last one that is committed
    record: str  # the digest of its record


class SignedGrid(EnrolledGrid):
    """`grid`, with the devices that are on the roll, and with the server's key."""

    def __init__(self, grid: Grid, roll: Roll, signer: Signer, counter: Counter | None = None) -> None:
        super().__init__(grid, roll)
        self._signer = signer
        self._counter = counter or Counter(roll.folder / FOLDER / COUNTER)
        self._run = self._base = self._config = ""
        self._head: Callable[[], Head] = lambda: Head(0, "")
        self._sent: dict[str, Statement] = {}  # by the message's id
        self._last: tuple[bytes, str] = (b"", digest(b""))  # what was sent last, and its digest
        self.proofs: dict[str, Proof] = {}  # of answers that hold, by the message that they answer

    def begin(self, run: str, base: str, config: Mapping[str, Scalar], head: Callable[[], Head]) -> None:
        """Sign for this run from now on; `config` is what Flower hands to its devices, too."""
        self._run, self._base, self._config, self._head = run, base, digest_of_config(config), head

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        said = [self._sign(message) for message in messages]
        ids = list(super().push_messages(messages))
        for message_id, statement in zip(ids, said, strict=True):
            if message_id and statement is not None:
                self._sent[message_id] = statement
        while len(self._sent) > _MOST_SENT:
            del self._sent[next(iter(self._sent))]
        return ids

    def _sign(self, message: Message) -> Statement | None:
        """Put the signed instruction beside what the message brings; None for a device that signs nothing."""
        metadata = message.metadata
        key = self._roll.key_of(metadata.dst_node_id)
        if key is None:
            return None
        head = self._head()
        statement = Statement(
            kind=metadata.message_type, run=self._run, round=int(metadata.group_id), sender=self._signer.key.public.keyid,
            receiver=key.keyid, payload=self._digest(message), base=self._base, config=self._config,
            counter=self._counter.next(), head=head.record, head_round=head.server_round,
        )  # fmt: skip
        record: dict[str, Any] = {SIGNED_SAID: signed(statement, INSTRUCTION, self._signer.key)}
        if self._signer.rotated:
            record[ROTATED] = list(self._signer.rotated)
        message.content[SIGNED] = ConfigRecord(record)
        return statement

    def _digest(self, message: Message) -> str:
        """Of the update that a message brings: a round sends the same to all of its devices."""
        data = message.content.array_records["update"]["update"].data
        if data is not self._last[0]:
            self._last = (data, digest(data))
        return self._last[1]

    def _named(self, message: Message) -> Message:
        node = self._node_of.get(message.metadata.reply_to_message_id, message.metadata.src_node_id)
        named = super()._named(message)
        asked = self._sent.pop(message.metadata.reply_to_message_id, None)
        key = self._roll.key_of(node)
        if named.has_error() or REFUSAL in named.content.config_records or key is None:
            return named
        reason, why = self._flaw(named, asked, key)
        if not reason:
            return named
        content = RecordDict({"device": named.content["device"], REFUSAL: ConfigRecord({REASON: reason, SAID: why})})
        return make_message(metadata=message.metadata, content=content)

    def _flaw(self, message: Message, asked: Statement | None, key: PublicKey) -> tuple[str, str]:
        """(the word by which an answer is refused, why); empty where it holds, and its proof is then kept."""
        envelope = message.content.config_records.get(SIGNED, ConfigRecord()).get(SIGNED_SAID)
        if not isinstance(envelope, bytes) or len(envelope) > MAX_BYTES:
            return "unsigned", "its answer is not signed, and it was enrolled with a key"
        try:
            said = read_signed(envelope, ANSWER, [key], "its answer").statement
        except IdentityError as error:
            return "bad-signature", str(error)
        if asked is None or said.instruction != digest_of(asked):
            return "replayed", f"it answers another instruction, of round {said.round} of run {said.run:.40}"
        expected = replace(
            asked, sender=key.keyid, receiver=asked.sender, payload=_payload(message), instruction=said.instruction
        )
        if differing := said.differing(expected, *Statement.__dataclass_fields__):
            return "relabelled", f"it signs another {differing} than what came with it"
        self.proofs[message.metadata.reply_to_message_id] = Proof(key=key, answer=envelope, payload=said.payload)
        while len(self.proofs) > _MOST_SENT:
            del self.proofs[next(iter(self.proofs))]
        return "", ""


def _payload(message: Message) -> str:
    """The digest of what an answer brings; "" where it brings nothing that is read."""
    content = message.content
    try:
        if message.metadata.message_type == MessageType.TRAIN:
            return digest(content.array_records["update"]["update"].data)
        measured = content.metric_records["metrics"]
        return digest_of_metrics({name: float(value) for name, value in measured.items()})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, IdentityError):
        return ""
