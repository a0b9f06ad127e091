"""Whether a written graph computes what the trainer computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort
from fedlora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.errors import GraphError
from fedlora.lora import LoraConfig
from fedlora.pack import BasePack
from fedlora.profiles import Profile
from numpy.typing import NDArray

from fedlora_export.graph_runs import run_graph

# Both sides sum in float32, in another order: for logits of a few tens that is 1e-5 or so; ten times that is a mistake.
TOLERANCE = 2e-4
_TOKENS = 16

# (base, tokens [S, T], adapter, mask [S, T]) -> logits [S, T, V], or an encoder's scores [S, L]
Reference = Callable[[BasePack, NDArray[np.int64], Adapter | None, NDArray[np.int64] | None], NDArray[np.float32]]


def find_reference() -> Reference | None:
    """The trainer's logits where the client is installed (entry-point group `fedlora.references`)."""
    for point in entry_points(group="fedlora.references"):
        try:
            return cast(Reference, point.load())
        except ImportError:
            continue
    return None


def check_graph(
    graph: Path, base: BasePack, profile: Profile = "compat", *, tolerance: float | None = TOLERANCE
) -> dict[str, float] | None:
    """The largest difference of logits, without an adapter and with one; None where there is nothing to compare with.

    Raises GraphError where ONNX Runtime refuses the graph, gives something that is not finite, or differs by more than
    `tolerance`, absolute or relative to the largest logit; None: by whatever it is.
    """
    session = open_session(graph)
    generator = np.random.default_rng(0)
    count = 2 if profile == "rows" else 1
    tokens = generator.integers(0, base.model.vocab_size, (count, min(_TOKENS, base.model.max_positions)))
    mask, reference = np.ones_like(tokens), find_reference()
    differences = {}
    for name, adapters in _cases(base, profile, generator):
        try:
            got, positions = run_graph(session, base, profile, tokens, mask, adapters)
        except Exception as error:
            raise GraphError(f"ONNX Runtime does not run it ({name}): {error}") from None
        if not np.isfinite(got).all():
            raise GraphError(f"the logits ({name}) are not finite")
        if reference:
            rows = [reference(base, tokens[i : i + 1], a, mask[i : i + 1]) for i, a in enumerate(adapters)]
            expected = np.concatenate(rows).reshape(count, -1, got.shape[-1])[:, positions]
            differences[name] = float(np.abs(got - expected).max())
            allowed = (tolerance or np.inf) * max(1.0, float(np.abs(expected).max()))
            if differences[name] > allowed:
                raise GraphError(
                    f"the logits ({name}) differ from torch's by {differences[name]:.3g}; allowed {allowed:.3g}"
                )
    return differences or None


def _cases(
    base: BasePack, profile: Profile, generator: np.random.Generator
) -> Iterator[tuple[str, list[Adapter | None]]]:
    """(name, the adapter of each row)"""
    if profile == "rows":
        yield "adapters", [_random_adapter(base, generator) for _ in range(2)]
        return
    yield "base", [None]
    if profile != "base":
        yield "adapter", [_random_adapter(base, generator)]


def _random_adapter(base: BasePack, generator: np.random.Generator) -> Adapter:
    """An adapter whose every factor counts: a graph that dropped or swapped one would be seen."""
    modules = base.model.linear_modules()
    config = LoraConfig(rank=4, alpha=8.0, target_modules=tuple({module.rsplit(".", 1)[-1] for module in modules}))
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.05, pair.lora_B.shape).astype(np.float32))
        for module, pair in initial_adapter(config, modules, generator).pairs.items()
    }
    return Adapter(config, pairs)


def open_session(graph: Path) -> ort.InferenceSession:
    """Raises GraphError where ONNX Runtime refuses the graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own kinds, which share no base
        raise GraphError(f"ONNX Runtime does not load it: {error}") from None
