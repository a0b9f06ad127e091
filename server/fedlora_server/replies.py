"""What a device replied: a message of Flower's becomes a `Reply`, whose texts are fit for a log."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import printable as one_line
from fedlora.identity.keys import PublicKey
from fedlora.wire.costs import COSTS, told_costs
from fedlora.wire.refusal import POLICY_REASONS, REASON, REFUSAL, SAID, SIGNATURE_REASONS
from flwr.app import ConfigRecord, Message, MessageType

from fedlora_server.ways import ways_s

_LONGEST_TEXT = 500
NAMED = re.compile(r"device (.{1,64}?): (.*)", re.DOTALL)
FAILED, NO_ANSWER, LATE = "device-error", "no-answer", "late"
REVOKED = "revoked"  # what a fleet's grid puts in place of the answer of a device that it does not know any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a device signed of its answer, once that is verified."""

    key: PublicKey
    answer: bytes  # the envelope
    payload: str  # sha256 of the answer's bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one device replied: `data` and `metrics` where it did what was asked, `error` where it did not.

    Its texts are fit for a log.
    """

    node: int
    device: str  # the name that it gives itself; the node's number where it gives none
    reason: str = FAILED  # the word by which an error is counted; of a refusal, that of the device's policy
    data: bytes = b""
    metrics: dict[str, float] | None = None
    error: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)  # what it took: `run/device_costs.py`
    kind: str = MessageType.TRAIN  # of the message that it replies to, ...
    server_round: int = 0  # ... and the round that this was of: by what we sent, not by what the device says
    proof: Proof | None = None  # in a fleet whose devices sign


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that went out."""

    node: int
    kind: str
    server_round: int
    most_bytes: int
    due: float  # until when its device may reply
    data: bytes
    activated: str  # when its device had come to SuperLink last, as far as that tells
    times: int = 1  # that it was sent because a reply was lost
    sent_at: float = 0.0  # by this machine's clock, as Flower has it

    def reply(self, **what: Any) -> Reply:
        return Reply(node=self.node, kind=self.kind, server_round=self.server_round, **what)


def oversized(sent: Sent) -> Reply:
    """In place of what is not read."""
    error = f"its reply is larger than {sent.most_bytes} bytes, the most that a reply to this message can have"
    return sent.reply(device=str(sent.node), error=error, reason="oversized")


def reply_of(message: Message, sent: Sent) -> Reply:
    """What a message says that came for `sent`: an error where it is no reply to it."""
    if message.has_error():
        said = message.error.reason or f"error {message.error.code}"
        named = NAMED.match(said)  # as our devices say who they are
        device, said = (named[1], named[2]) if named else (str(sent.node), said)
        return sent.reply(device=printable(device), error=printable(said))
    content = message.content
    arrays = [array for record in content.array_records.values() for array in record.values()]
    if sum(len(array.data) for array in arrays) > sent.most_bytes:
        return oversized(sent)
    try:
        name = printable(str(content.config_records["device"]["device"])[:64])
        if REFUSAL in content.config_records:
            return _refusal(content.config_records[REFUSAL], sent, name)
        if message.metadata.message_type == MessageType.TRAIN:
            data = content.array_records["update"]["update"].data
            told = told_costs(content.metric_records.get(COSTS, {}))
            ways = ways_s(sent.sent_at, message.metadata.created_at, time.time(), told.get("work_s"))
            return sent.reply(
                device=name, data=data, costs={**told, **ways, "bytes_down": len(sent.data), "bytes_up": len(data)}
            )
        metrics = {
            key: float(value) for key, value in content.metric_records["metrics"].items() if not isinstance(value, list)
        }
        return sent.reply(device=name, metrics=metrics)
    except (KeyError, TypeError, ValueError) as error:
        return sent.reply(
            device=str(sent.node), error=printable(f"not an answer to {message.metadata.message_type}: {error!r}")
        )


def _refusal(record: ConfigRecord, sent: Sent, device: str) -> Reply:
    """What a device's policy said; by a word that is none of the known ones it is a failure like any other."""
    reason, said = record.get(REASON), record.get(SAID)
    known = isinstance(reason, str) and (reason in POLICY_REASONS or reason in SIGNATURE_REASONS or reason == REVOKED)
    text = said if isinstance(said, str) and said else "it refuses, and says nothing more"
    return sent.reply(device=device, error=printable(text), reason=str(reason) if known else FAILED)


def printable(text: str) -> str:
    """What a stranger wrote, fit for one line of a log."""
    short = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
    return one_line(short)
