"""Whether a written graph computes what the trainer computes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort
from fedlora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.errors import GraphError
from fedlora.lora import LoraConfig
from fedlora.pack import BasePack
from fedlora.slots import slot_values
from numpy.typing import NDArray

# Both sides sum in float32, in another order: for logits of a few tens that is 1e-5 or so; ten times that is a mistake.
TOLERANCE = 2e-4
_TOKENS = 16

Reference = Callable[[BasePack, NDArray[np.int64], Adapter | None], NDArray[np.float32]]


def find_reference() -> Reference | None:
    """The trainer's logits where the client is installed (entry-point group `fedlora.references`)."""
    for point in entry_points(group="fedlora.references"):
        try:
            return cast(Reference, point.load())
        except ImportError:
            continue
    return None


def check_graph(graph: Path, base: BasePack) -> dict[str, float] | None:
    """The largest difference of logits, without an adapter and with one; None where there is nothing to compare with.

    Raises GraphError where ONNX Runtime refuses the graph, gives something that is not finite, or differs by more than
    TOLERANCE, absolute or relative to the largest logit.
    """
    try:
        session = ort.InferenceSession(graph, _quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own kinds, which share no base
        raise GraphError(f"ONNX Runtime does not load it: {error}") from None
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, base.shape.vocab_size, (1, min(_TOKENS, base.shape.max_positions)))
    reference = find_reference()
    differences = {}
    for name, adapter in (("base", None), ("adapter", _random_adapter(base, generator))):
        try:
            got = _logits(session, base, tokens, adapter)
        except Exception as error:
            raise GraphError(f"ONNX Runtime does not run it ({name}): {error}") from None
        if not np.isfinite(got).all():
            raise GraphError(f"the logits ({name}) are not finite")
        if reference:
            expected = reference(base, tokens, adapter)
            differences[name] = float(np.abs(got - expected).max())
            allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            if differences[name] > allowed:
                raise GraphError(
                    f"the logits ({name}) differ from torch's by {differences[name]:.3g}; allowed {allowed:.3g}"
                )
    return differences or None


def _random_adapter(base: BasePack, generator: np.random.Generator) -> Adapter:
    """An adapter whose every factor counts: a graph that dropped or swapped one would be seen."""
    modules = base.shape.linear_modules()
    config = LoraConfig(rank=4, alpha=8.0)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.05, pair.lora_B.shape).astype(np.float32))
        for module, pair in initial_adapter(config, modules, generator).pairs.items()
    }
    return Adapter(config, pairs)


def _logits(
    session: ort.InferenceSession, base: BasePack, tokens: NDArray[np.int64], adapter: Adapter | None
) -> NDArray[np.float32]:
    """One step over all tokens but the last, then one over the last: the cache is checked too."""
    shape = base.shape
    cache = np.zeros((1, shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": cache for i in range(shape.num_layers) for kind in ("key", "value")}
    slots = slot_values(adapter) if adapter else {}
    parts, done = [], 0
    for part in (tokens[:, :-1], tokens[:, -1:]):
        done += part.shape[1]
        feeds = {"input_ids": part, "attention_mask": np.ones((1, done), np.int64), **past, **slots}
        logits, *present = session.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        parts.append(logits)
    return np.concatenate(parts, 1)


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
    return options
