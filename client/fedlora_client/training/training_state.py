"""The state of a training on disk: what a device that dies in the middle of a round goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedlora.config.run import TrainConfig
from fedlora.counted import counted
from fedlora.errors import ConfigError, FedloraError
from fedlora.files.atomic import whole_file
from fedlora.files.tensor_file import TensorFile, TensorPlan, write_tensor_file
from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet
from numpy.typing import NDArray
from torch import Tensor

from fedlora_client.data.windows import Windows
from fedlora_client.layers.step_plan import StepPlan
from fedlora_client.model import Model
from fedlora_client.ops.compute import Compute
from fedlora_client.training.training import Span, Training

_FORMAT = "fedlora-training-1"
_CANNOT, _REMEDY = "cannot go on from this state of a training", "remove it to begin anew"
_MAX_HEADER_BYTES = 1 << 24  # the losses of a long training are in it


@dataclass(slots=True, kw_only=True)
class Progress:
    """What has happened in a training so far."""

    losses: list[float] = field(default_factory=list)  # nats per token, one per step
    tokens: int = 0  # that were learned
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (steps done, held-out loss)
    best: dict[str, Tensor] = field(default_factory=dict)  # `LoraTensors.flats` at the evaluation with the least loss


def write_state(path: Path, identity: str, training: Training, progress: Progress) -> None:
    """Write the state of a training of one adapter, between two steps, whole; or leave the last one.

    One tensor [3 or 4, numbers] for all of what trains under one name: its values, both moments, and the best if any.
    """
    parts = {}
    for name, optimizer in training.optimizers.items():
        best = [progress.best[name]] if progress.best else []
        parts[name] = [optimizer.value, optimizer.first, optimizer.second, *best]
    plans = [TensorPlan(name=name, dtype="F32", shape=(len(p), len(p[0]))) for name, p in parts.items()]
    numbers = {"losses": progress.losses, "tokens": progress.tokens, "evaluations": progress.evaluations}
    metadata = {
        "format": _FORMAT, "identity": identity, "circumstances": json.dumps(_circumstances(training)),
        "progress": json.dumps({"step": training.step, **numbers}),
    }  # fmt: skip

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:  # row by row: three adapters more would not fit a device
        for part in parts[plan.name]:
            yield part.cpu().numpy()

    with whole_file(path) as aside:
        write_tensor_file(aside, plans, fill, metadata, at_rest=path.name)


def plan_of_state(path: Path, identity: str, plan: StepPlan, compute: Compute) -> StepPlan:
    """`plan`, cut as the batches of the saved training were: what memory is free now must not change its result.

    Raises ConfigError where the state is another training's, or was computed otherwise.
    """
    try:
        metadata = TensorFile(path, max_header_bytes=_MAX_HEADER_BYTES).metadata
        if metadata.get("format") != _FORMAT:
            raise ConfigError(f"it is none: expected the format {_FORMAT}")
        if metadata.get("identity") != identity:
            raise ConfigError("it is another training's: expected the same base, data, configuration and adapter")
        made = json.loads(metadata["circumstances"])
        if made["compute"] != _computed_by(compute):
            raise ConfigError(
                f"it was computed by {made['compute']}, this would be {_computed_by(compute)}: set that again"
            )
        return replace(
            plan,
            micro_batch=int(made["micro_batch"]),
            memory_plan=replace(plan.memory_plan, chunk_rows=int(made["chunk_rows"])),
        )
    except (FedloraError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: {_CANNOT}: {error}; {_REMEDY}") from None


def restore_state(path: Path, training: Training) -> Progress:
    """Put the state that `plan_of_state` found sound into a training that has not begun.

    Raises ConfigError where the file is damaged; the training is then as it was.
    """
    try:
        file = TensorFile(path, max_header_bytes=_MAX_HEADER_BYTES)
        known = json.loads(file.metadata["progress"])
        progress = Progress(
            losses=[float(loss) for loss in known["losses"]],
            tokens=int(known["tokens"]),
            evaluations=[(int(at), float(loss)) for at, loss in known["evaluations"]],
        )
        step, tensors = int(known["step"]), {}
        if not 0 < step == len(progress.losses) <= training.config.steps:
            raise ConfigError(
                f"it has {counted(len(progress.losses), 'loss', 'losses')} of {counted(step, 'step')}; expected one each, "
                f"of {training.config.steps} in all"
            )
        rows = 3 + bool(progress.evaluations)
        for name, optimizer in training.optimizers.items():
            parts = torch.from_numpy(file.float32(name))
            if parts.shape != (rows, len(optimizer.value)):
                raise ConfigError(f"{name} is {list(parts.shape)}, expected {[rows, len(optimizer.value)]}")
            tensors[name] = parts
    except (FedloraError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{path}: {_CANNOT}: {error}; {_REMEDY}") from None
    for name, optimizer in training.optimizers.items():
        for target, part in zip((optimizer.value, optimizer.first, optimizer.second), tensors[name], strict=False):
            target.copy_(part)
        if rows > 3:
            progress.best[name] = tensors[name][3].to(optimizer.value.device, copy=True)
    training.skip(step)
    return progress


def identity_of(
    model: Model,
    adapter: Adapter,
    windows: Windows,
    config: TrainConfig,
    generator: np.random.Generator,
    span: Span,
    trains: FactorSet,
    frozen: Adapter | None,
) -> str:
    """sha256 over what a training is, but for how it is computed."""
    settings = asdict(config)
    if not config.label_prior:
        del settings["label_prior"]  # states of before are known by what they were known by then
    plain = (model.base.fingerprint, settings, generator.bit_generator.state, asdict(span), trains)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    for tensor in (windows.inputs, windows.targets, windows.starts):
        digest.update(tensor.contiguous().numpy().data)
    for part in (adapter, frozen) if frozen else (adapter,):
        digest.update(f"{len(part.pairs)} modules".encode())
        for name, pair in part.pairs.items():
            digest.update(f"{name} {part.config.scaling_of(name)}".encode())
            digest.update(np.ascontiguousarray(pair.lora_A).data)
            digest.update(np.ascontiguousarray(pair.lora_B).data)
    for name, array in adapter.extras.items():
        if adapter.config.method != "lora":
            digest.update(f"{adapter.config.method} {name}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _circumstances(training: Training) -> dict[str, str | int]:
    """How the training is computed: it changes the last bits of the result, and a machine may choose it anew."""
    plan = training.plan
    compute = _computed_by(training.compute)
    return {"compute": compute, "micro_batch": plan.micro_batch, "chunk_rows": plan.memory_plan.chunk_rows}


def _computed_by(compute: Compute) -> str:
    return f"{compute}, {torch.get_num_threads()} threads"
