"""How a device is bad, and the reason that it is counted by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.wire.update import Update, encode_update
from flwr.app import Error, Message, RecordDict

from tests.server.fake_grid import training_reply


def filled(update: Update, value: float) -> Update:
    """The update with every number of its adapter replaced."""
    pairs = {
        module: LoraPair(np.full_like(pair.lora_A, value), np.full_like(pair.lora_B, value))
        for module, pair in update.adapter.pairs.items()
    }
    return dataclasses.replace(update, adapter=Adapter(update.adapter.config, pairs))


def replying(change: Callable[[Update], Update]) -> Callable[[Message, Update], Sequence[Message]]:
    return lambda message, update: [training_reply(message, encode_update(change(update)), "bad")]


def replying_bytes(change: Callable[[bytes], bytes]) -> Callable[[Message, Update], Sequence[Message]]:
    return lambda message, update: [training_reply(message, change(encode_update(update)), "bad")]


def raising(message: Message, update: Update) -> Sequence[Message]:
    raise OSError("the disk is gone")


BAD: dict[str, tuple[str, Callable[[Message, Update], Sequence[Message]]]] = {
    "replies an error": ("device-error", lambda message, _: [Message(Error(3, "out of memory"), reply_to=message)]),
    "raises": ("device-error", raising),
    "sends empty records": ("device-error", lambda message, _: [Message(RecordDict(), reply_to=message)]),
    "sends garbage": ("bad-header", replying_bytes(lambda data: bytes(reversed(data)))),
    "sends no bytes": ("bad-header", replying_bytes(lambda data: b"")),
    "sends a truncated update": ("truncated", replying_bytes(lambda data: data[:-1])),
    "sends half a header": ("bad-header", replying_bytes(lambda data: data[:40])),
    "sends a byte too many": ("truncated", replying_bytes(lambda data: data + b"\0")),
    "sends NaN": ("not-finite", replying(lambda update: filled(update, math.nan))),
    "sends infinity": ("not-finite", replying(lambda update: filled(update, math.inf))),
    "sends the round before": (
        "wrong-round",
        replying(lambda update: dataclasses.replace(update, server_round=update.server_round - 1)),
    ),
    "sends another run's": ("wrong-run", replying(lambda update: dataclasses.replace(update, run="other"))),
    "claims 10^12 examples": ("bad-weight", replying(lambda u: dataclasses.replace(u, num_examples=10**12))),
    "never replies": ("no-answer", lambda message, update: []),
}
