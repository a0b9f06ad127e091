"""Whether a written graph computes what the trainer computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.exported.profiles import HEAD_PROFILES, ROW_PROFILES, Profile
from fedlora.family import DecoderShape
from fedlora.lora.adapter import Adapter
from fedlora.native import BuildError
from fedlora.row_lora.library import row_lora

from fedlora_export.checks.graph_runs import run_graph
from fedlora_export.checks.scaled_sample import scaled_sample
from fedlora_export.checks.torch_logits import Expected, Floats, Sample

# Both sides sum in float32, in another order: for logits of a few tens that is 1e-5 or so; twenty times that is a mistake.
TOLERANCE = 2e-4
# An encoder's scores are below 1, and both sides agree to 1e-6: gelu by its tanh formula is 4e-5 off.
ENCODER_TOLERANCE = 2e-5
# Of activations rounded to int8: models with random weights come to 0.2 of the largest logit. Beyond this nothing is left.
ROUNDED_TOLERANCE = 1.0


def check_graph(
    graph: Path,
    base: BasePack,
    expected: Expected | None,  # None: there is nothing to compare with, and the graph must run all the same
    profile: Profile = "compat",
    *,
    tolerance: float | None = None,  # None: that of float32, for the kind of model
    takes_scales: bool = False,  # the graph has inputs for what scales modules
) -> dict[str, float] | None:
    """The largest difference of logits, without an adapter and with one; None where nothing is expected.

    Raises GraphError where ONNX Runtime refuses the graph, gives something that is not finite, or differs by more than
    `tolerance`, absolute or relative to the largest logit.
    """
    if tolerance is None:
        tolerance = TOLERANCE if isinstance(base.model, DecoderShape) else ENCODER_TOLERANCE
    session, sample = open_session(graph, profile), Sample.of(base)
    differences = {}
    for name, adapters, logits in _cases(sample, expected, profile, scaled_sample(base) if takes_scales else {}):
        tokens, mask = sample.tokens[: len(adapters)], sample.mask[: len(adapters)]
        try:
            got, positions = run_graph(session, base, profile, tokens, mask, adapters, takes_scales=takes_scales)
        except Exception as error:
            raise GraphError(f"ONNX Runtime does not run it ({name}): {error}; export it again") from None
        if not np.isfinite(got).all():
            raise GraphError(f"the logits ({name}) are not finite; expected numbers: export it again")
        if logits is not None:
            wanted = np.stack([row.reshape(-1, got.shape[-1])[at] for row, at in zip(logits, positions, strict=True)])
            differences[name] = float(np.abs(got - wanted).max())
            allowed = tolerance * max(1.0, float(np.abs(wanted).max()))
            if differences[name] > allowed:
                raise GraphError(
                    f"the logits ({name}) differ from torch's by {differences[name]:.3g}; allowed {allowed:.3g}"
                )
    return differences or None


def open_session(graph: Path, profile: Profile = "compat") -> ort.InferenceSession:
    """Raises GraphError where ONNX Runtime refuses the graph, or the operator of `kernel` is not to be had."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
    options.enable_cpu_mem_arena = False  # which would take twice what it needs
    if profile == "kernel":
        try:
            options.register_custom_ops_library(str(row_lora().library))
        except BuildError as error:
            raise GraphError(f"its operator does not run here: {error}; export another --profile") from None
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own kinds, which share no base
        raise GraphError(f"ONNX Runtime does not load it: {error}; export it again") from None


def _cases(
    sample: Sample, expected: Expected | None, profile: Profile, scaled: Mapping[str, Adapter]
) -> Iterator[tuple[str, list[Adapter | None], list[Floats] | None]]:
    """(name, the adapter of each row, the logits of each)"""
    if profile in ROW_PROFILES:
        yield "adapters", list(sample.adapters), None if expected is None else list(expected.rows)
    for name, adapter in scaled.items():  # beside a row that nothing scales, where rows have adapters of their own
        beside = [sample.adapters[1]] if profile == "rows" else []
        logits = None if expected is None else [expected.scaled[name], *expected.rows[1:]][: 1 + len(beside)]
        yield name, [adapter, *beside], logits
    if profile == "rows":  # rank 0 is no other case to it
        return
    yield "base", [None], None if expected is None else [expected.base]
    if profile not in ("kernel", "base"):
        yield "adapter", [sample.adapters[0]], None if expected is None else [expected.rows[0]]
    if sample.headed is not None and profile in HEAD_PROFILES:
        logits = None if expected is None or expected.headed is None else [expected.headed]
        yield "adapter with a head", [sample.headed], logits
