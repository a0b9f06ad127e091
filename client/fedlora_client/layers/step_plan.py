"""How a step is cut to fit the memory that there is: what the plans of a decoder and of an encoder share.

A plan takes as many windows at a time as keep products efficient, then keeps the activations of as many blocks as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedlora.config.run import TrainConfig
from fedlora.counted import counted
from fedlora.errors import ConfigError

PLAIN_COPIES = 3  # in float32, of what an operation in plain torch reads
SCALED = 2  # what a scaled module gives before its vector, and that times the gradient
MASKS = 3  # what is drawn for dropout, its integers, and what goes through it


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How a step trades memory for time. It changes no result, but for `chunk_rows` by rounding."""

    kept_blocks: int = 0  # whose activations are kept, not computed again, beside those of the last one
    chunk_rows: int = 256  # whose logits are held at a time


NOTHING_KEPT = MemoryPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What there is before the first step, in bytes: of the machine, or of a GPU where that computes."""

    resident: int  # that the process takes now
    coming: int  # that it will take without any step: the base's pages, the adapter, its gradients and moments
    free: int  # that the machine can still give


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How the batches of a training are computed, and the memory that this takes."""

    micro_batch: int  # sequences at a time
    memory_plan: MemoryPlan
    step_bytes: int  # beyond what is there before the first step

    def __str__(self) -> str:
        return (
            f"{counted(self.micro_batch, 'window')} at a time, activations of "
            f"{counted(self.memory_plan.kept_blocks, 'block')} kept, "
            f"{counted(self.memory_plan.chunk_rows, 'row')} of logits, {self.step_bytes / 1e6:.0f} MB for a step"
        )


def fitting_plan(
    cuts: Sequence[tuple[int, MemoryPlan]],  # (windows at a time, memory plan that keeps nothing), the best first
    size_bytes: Callable[[int, MemoryPlan], int],  # of a step that is cut like this
    config: TrainConfig,
    num_layers: int,
    memory: Memory,
) -> StepPlan:
    """The first cut that fits, with as many blocks kept as then fit. Raises ConfigError where none does."""
    fewest = 0 if config.checkpointing != "off" else num_layers - 1
    most = num_layers - 1 if config.checkpointing != "on" else 0
    available = memory.free - memory.coming
    if config.memory_mb:
        available = min(available, config.memory_mb * 1_000_000 - memory.resident - memory.coming)

    def plan(cut: tuple[int, MemoryPlan], kept: int) -> StepPlan:
        micro_batch, memory_plan = cut[0], replace(cut[1], kept_blocks=kept)
        return StepPlan(
            micro_batch=micro_batch, memory_plan=memory_plan, step_bytes=size_bytes(micro_batch, memory_plan)
        )

    best = next((cut for cut in cuts if plan(cut, fewest).step_bytes <= available), None)
    if best is None:
        needed = memory.resident + memory.coming + plan(cuts[-1], fewest).step_bytes
        raise ConfigError(
            f"train.memory_mb is {config.memory_mb or 'not set'} and {memory.free // 1_000_000} MB are free; with windows "
            f"of {config.sequence_length} tokens a training takes at least {-(-needed // 1_000_000)} MB, of which the "
            f"process has {memory.resident // 1_000_000} already: give it more, or lower train.sequence_length"
        )
    bound = available if config.memory_mb else max(memory.free // 4, plan(best, fewest).step_bytes)
    return next(p for n in range(most, fewest - 1, -1) if (p := plan(best, n)).step_bytes <= bound)


def micro_batches(config: TrainConfig, rows: int) -> list[int]:
    """Numbers of sequences, from the largest that is of use to 1."""
    sizes = [min(config.batch_size, max(1, rows // config.sequence_length))]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes
