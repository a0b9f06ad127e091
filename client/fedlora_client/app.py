"""The Flower ClientApp: it takes messages to the device and brings its answers back.

With `socket` in the node's configuration it is a courier to the device service that listens there, and loads nothing that
trains; without, the device works in this process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from fedlora.errors import CourierError, FedloraError, PolicyError
from fedlora.wire.beside import ROTATED, SIGNED, SIGNED_SAID
from fedlora.wire.costs import COSTS, told_costs
from fedlora.wire.refusal import REASON, REFUSAL, SAID
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlora_client.courier.courier import ask
from fedlora_client.courier.question import Answer, Kind, Question

app = ClientApp()
_KIND_OF: dict[str, Kind] = {MessageType.TRAIN: "train", MessageType.EVALUATE: "evaluate"}


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter that came down; send what is asked for of it up."""
    return _reply(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the adapter that came down on the held-out text."""
    return _reply(message, context)


def _reply(message: Message, context: Context) -> Message:
    node, began = context.node_config, time.monotonic()
    try:
        question = _question(message, context)
        if "socket" in node:
            return _message(ask(str(node["socket"]), question), message, began)
        # Here: a courier does without torch, which takes seconds to load.
        from fedlora_client.answers import answer
        from fedlora_client.service.signing import Signing

        signing = Signing.of_node(node)
        if signing is None:
            return _message(answer(question, node), message, began)
        return _message(signing.answered(question, lambda: answer(question, node)), message, began)
    except FedloraError as error:
        refusal = error.reason if isinstance(error, PolicyError) else ""
        name = str(node.get("name") or "without name")
        return _message(Answer(device=name, refusal=refusal, said=str(error)), message, began)


def _question(message: Message, context: Context) -> Question:
    arrays: Mapping[str, Array] = message.content.array_records.get("update", {})
    signed = message.content.config_records.get(SIGNED, ConfigRecord())
    return Question(
        kind=_KIND_OF[message.metadata.message_type],
        run_config={**context.run_config},
        run_id=context.run_id,
        seconds=_seconds_left(message) if "socket" in context.node_config else message.metadata.ttl,
        data=arrays["update"].data if "update" in arrays else None,
        signed=_plain(signed.get(SIGNED_SAID)),
        rotated=tuple(_plain(each) for each in chain) if isinstance(chain := signed.get(ROTATED), list) else (),
    )


def _plain(value: object) -> str:
    """The text of an envelope; empty for anything else."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _seconds_left(message: Message) -> float:
    """Until nobody waits for the answer any more. Raises CourierError where that was before now, by this clock."""
    ttl = message.metadata.ttl
    left = message.metadata.created_at + ttl - time.time()
    if left <= 0:
        raise CourierError(
            f"by this device's clock its time was over {-left:.0f} s ago; set the clock, which must be that of the server"
        )
    return min(left, ttl)


def _message(answer: Answer, message: Message, began: float) -> Message:
    name = ConfigRecord({"device": answer.device})
    if answer.refusal:
        refusal = ConfigRecord({REASON: answer.refusal, SAID: answer.said})
        return Message(RecordDict({REFUSAL: refusal, "device": name}), reply_to=message)
    if answer.said:
        # An error has no room for a name but in its text; a device has one name, there as elsewhere.
        said = f"device {answer.device}: {answer.said}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, said), reply_to=message)
    signed = {SIGNED: ConfigRecord({SIGNED_SAID: answer.signed.encode()})} if answer.signed else {}
    if message.metadata.message_type == MessageType.EVALUATE:
        metrics = MetricRecord({**answer.metrics})
        return Message(RecordDict({"metrics": metrics, "device": name, **signed}), reply_to=message)
    data = bytes(answer.data)
    array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
    costs = MetricRecord({**told_costs({**answer.metrics, "work_s": time.monotonic() - began})})
    content = RecordDict({"update": ArrayRecord({"update": array}), "device": name, COSTS: costs, **signed})
    return Message(content, reply_to=message)
