"""What a device answers to what a server asks: work and refusals, without Flower's types."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fedlora.config.run import RunConfig, Scalar
from fedlora.errors import FedloraError, PolicyError, UpdateError
from fedlora.wire.costs import told_costs
from fedlora.wire.label_counts import TEST
from fedlora.wire.update import Update, decode_update, encode_update

from fedlora_client.courier.question import Answer, Question
from fedlora_client.data.clients import node_name
from fedlora_client.device import Device
from fedlora_client.opened import Part
from fedlora_client.training.energy import EnergyMeter
from fedlora_client.training.memory import peak_bytes
from fedlora_client.training.trainer import TrainResult

Allow = Callable[[Device, Update], None]  # raises PolicyError


def answer(question: Question, node: Mapping[str, Scalar], allow: Allow = lambda device, update: None) -> Answer:
    """What the device that is configured so gives, or why not: that costs it the round, and nobody else.

    `allow` is asked when all is checked and nothing is computed yet.
    """
    device: Device | None = None
    try:
        device = Device(RunConfig.from_flat(question.run_config, "run configuration"), node)
        if question.data is None:
            raise UpdateError("bad-header", "the message has no array record update/update")
        update = decode_update(memoryview(question.data), device.first_adapter)
        device.check(update, trains=question.kind == "train")
        allow(device, update)
        return _trained(device, update) if question.kind == "train" else _measured(device, update)
    except FedloraError as error:
        name = device.name if device else node_name(node)
        refusal = error.reason if isinstance(error, PolicyError) else ""
        return Answer(device=name, refusal=refusal, said=str(error).removeprefix(f"device {name}: "))


def _trained(device: Device, update: Update) -> Answer:
    """Train the adapter that came down; send what is asked for of it up."""
    started, meter = time.monotonic(), EnergyMeter()
    result = device.train(update.adapter, update.server_round, task=update.task, frozen=update.frozen, run=update.run)
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
    return Answer(device=device.name, data=data, metrics={**trained.metrics, **_costs(result, meter)})


def _costs(result: TrainResult, meter: EnergyMeter) -> dict[str, float]:
    """What the training took, as far as it is known: `fedlora.wire.costs` has the names."""
    told: dict[str, object] = {"peak_mb": peak_bytes() / 1e6}
    if steps := len(result.step_seconds):
        told |= {
            "step_s": sum(result.step_seconds) / steps, "step_cpu_s": sum(result.step_cpu_seconds) / steps,
            "rss_mb": sum(result.resident) / steps / 1e6,
        }  # fmt: skip
    if energy := meter.joules():
        told["joules"] = energy[0]
    return told_costs(told)


def _measured(device: Device, update: Update) -> Answer:
    """Measure the adapter that came down on the held-out text, and on its share of the test set where there is one."""

    def measured(part: Part) -> dict[str, float]:
        one = device.measure(
            part, update.adapter, update.server_round, task=update.task, frozen=update.frozen, run=update.run
        )
        counts = one.labels or one.choices
        return {"loss": one.loss, "tokens": one.tokens, **(counts.told() if counts else {})}

    examples = device.held_out_windows().examples
    told = {
        "never_trains": float(device.data.never_trains),
        "examples": examples,
        "left_out_examples": len(device.data.held_out) - examples,
    }
    test = {f"{TEST}{name}": value for name, value in measured("test").items()} if device.data.test else {}
    return Answer(device=device.name, metrics={**measured("held_out"), **told, **test})
