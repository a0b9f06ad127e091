"""The trainer's logits of a few tokens, against which a graph is compared.

Where torch is not loaded yet it computes in a process of its own, which gives its memory back.
"""

# T tokens, V vocabulary

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.family import EncoderShape
from fedlora.files.temporary import own_folder
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.plugins import first_that_loads
from numpy.typing import NDArray

from fedlora_export.checks.scaled_sample import scaled_adapters

_TOKENS = 20  # of the longer row
OF_KIND = "kind "  # with which the names of arrays in a file begin
Floats = NDArray[np.float32]

# (base, tokens [S, T], adapter, mask [S, T]) -> logits [S, T, V], or an encoder's scores [S, L]
Reference = Callable[[BasePack, NDArray[np.int64], Adapter | None, NDArray[np.int64] | None], Floats]


@dataclass(frozen=True, slots=True)
class Sample:
    """Two rows of tokens, the first shorter and padded, and an adapter for each: the same ones for the same base."""

    tokens: NDArray[np.int64]  # [2, T]
    mask: NDArray[np.int64]  # [2, T]: 0 where the first row is padded at its end
    adapters: tuple[Adapter, Adapter]
    headed: Adapter | None  # an encoder's: the first one with a head of its own, for two labels more than the base has

    @classmethod
    def of(cls, base: BasePack) -> Sample:
        generator = np.random.default_rng(0)
        longest = min(_TOKENS, base.model.max_positions)
        tokens = generator.integers(0, base.model.vocab_size, (2, longest))
        mask = (np.arange(longest) < np.array([[longest - longest // 4], [longest]])).astype(np.int64)
        first, second = (_random_adapter(base, generator) for _ in range(2))
        shapes = base.model.head_inputs()
        more = len(base.model.labels) + 2 if isinstance(base.model, EncoderShape) else 0
        head = {
            name: generator.normal(0, 0.3, [more if size == -1 else size for size in shape]).astype(np.float32)
            for name, shape in shapes.items()
        }
        return cls(tokens, mask, (first, second), with_extras(first, head) if head else None)


@dataclass(frozen=True, slots=True)
class Expected:
    """What torch gives for a sample's rows without their padding, each [1, T, V] or an encoder's [1, L]."""

    base: Floats  # the first row, without an adapter
    rows: tuple[Floats, Floats]  # each row with its own
    headed: Floats | None = None  # the first row, with the first adapter that has a head
    scaled: Mapping[str, Floats] = field(default_factory=dict)  # the first row, with each of `scaled_adapters`


def torch_logits(base: BasePack, *, scaled: bool = False) -> Expected | None:
    """None where the client is not installed (entry-point group `fedlora.references`). Raises GraphError where it fails.

    `scaled`: those of adapters that scale modules, too.
    """
    if "torch" in sys.modules:
        return computed_logits(base, scaled=scaled)
    with own_folder("logits") as folder:
        output = folder / "logits.npz"
        command = [sys.executable, "-m", "fedlora_export.checks.reference_process", str(base.directory), str(output)]
        command += ["scaled"] if scaled else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise GraphError(
                f"torch's logits could not be computed (status {done.returncode}): {last:.300}; "
                "export again, with more memory free where it was short"
            )
        with np.load(output) as arrays:
            if not arrays.files:
                return None
            kinds = {name.removeprefix(OF_KIND): arrays[name] for name in arrays if name.startswith(OF_KIND)}
            return Expected(arrays["base"], (arrays["first"], arrays["second"]), arrays.get("headed"), kinds)


def find_reference() -> Reference | None:
    """The trainer's logits where the client is installed."""
    return cast(Reference | None, first_that_loads("fedlora.references"))


def computed_logits(base: BasePack, *, scaled: bool = False) -> Expected | None:
    """What `torch_logits` gives, computed in this process."""
    reference = find_reference()
    if reference is None:
        return None
    sample = Sample.of(base)
    texts = [tokens[None, mask == 1] for tokens, mask in zip(sample.tokens, sample.mask, strict=True)]
    first, second = (
        reference(base, text, adapter, np.ones_like(text)) for text, adapter in zip(texts, sample.adapters, strict=True)
    )
    plain, headed = (reference(base, texts[0], adapter, np.ones_like(texts[0])) for adapter in (None, sample.headed))
    kinds = scaled_adapters(base) if scaled else {}
    of_kinds = {name: reference(base, texts[0], adapter, np.ones_like(texts[0])) for name, adapter in kinds.items()}
    return Expected(plain, (first, second), headed if sample.headed else None, of_kinds)


def _random_adapter(base: BasePack, generator: np.random.Generator) -> Adapter:
    """An adapter whose every factor counts: a graph that dropped or swapped one would be seen."""
    modules = base.model.linear_modules()
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))
    config = LoraConfig(rank=4, alpha=8.0, target_modules=leaves)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.05, pair.lora_B.shape).astype(np.float32))
        for module, pair in initial_adapter(config, modules, generator).pairs.items()
    }
    return Adapter(config, pairs)
