"""The Flower ClientApp: it takes messages to the device and brings its answers back."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedlora.config.run import RunConfig
from fedlora.errors import FedloraError, UpdateError
from fedlora.wire.update import Update, decode_update, encode_update
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlora_client.data.clients import node_name
from fedlora_client.device import Device

app = ClientApp()


def _answer(message: Message, context: Context, work: Callable[[Device, Update], RecordDict]) -> Message:
    """What `work` gives, or our error as Flower's, which costs this device the round and nobody else."""
    device: Device | None = None
    try:
        device = Device(RunConfig.from_flat(context.run_config, "run configuration"), context.node_config)
        records = message.content.array_records
        if "update" not in records or "update" not in records["update"]:
            raise UpdateError("bad-header", "the message has no array record update/update")
        update = decode_update(records["update"]["update"].data, device.first_adapter)
        device.check(update, trains=message.metadata.message_type == MessageType.TRAIN)
        return Message(work(device, update), reply_to=message)
    except FedloraError as error:
        # An error has no room for a name but in its text; a device has one name, there as elsewhere.
        prefix = f"device {device.name if device else node_name(context.node_config)}: "
        said = prefix + str(error).removeprefix(prefix)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, said), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter that came down; send what is asked for of it up."""

    def work(device: Device, update: Update) -> RecordDict:
        started = time.monotonic()
        result = device.train(
            update.adapter, update.server_round, task=update.task, frozen=update.frozen, run=update.run
        )
        windows, counts = device.train_windows(), device.account()
        trained = Update(
            adapter=result.adapter,
            run=update.run,
            server_round=update.server_round,
            base_fingerprint=update.base_fingerprint,
            factors=update.task.sends,
            num_examples=len(windows),
            metrics={
                "train_loss": sum(result.losses) / len(result.losses),
                "tokens": result.tokens,
                "seconds": time.monotonic() - started,
                "examples": counts.train,
                "cut_examples": counts.cut,
                "left_out_examples": counts.left_out,
            },
        )
        data = encode_update(trained, device.config.server.codec)
        array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
        name = ConfigRecord({"device": device.name})
        return RecordDict({"update": ArrayRecord({"update": array}), "device": name})

    return _answer(message, context, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the adapter that came down on the held-out text."""

    def work(device: Device, update: Update) -> RecordDict:
        loss, tokens = device.evaluate(
            update.adapter, update.server_round, task=update.task, frozen=update.frozen, run=update.run
        )
        measured = device.held_out_windows().examples
        told = {"examples": measured, "left_out_examples": len(device.data.held_out) - measured}
        metrics = MetricRecord({"loss": loss, "tokens": tokens, **told})
        return RecordDict({"metrics": metrics, "device": ConfigRecord({"device": device.name})})

    return _answer(message, context, work)
