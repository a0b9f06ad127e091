"""Run an exported graph over a few tokens, each row with an adapter, whatever its profile."""

# S rows, T tokens of each, V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError
from fedlora.exported.inputs import input_values, is_of_head, joined_values, row_values
from fedlora.exported.profiles import ROW_PROFILES, Profile
from fedlora.family import DecoderShape
from fedlora.graph.adapter_inputs import NUMBERS
from fedlora.lora.adapter import Adapter
from fedlora.lora.output_scale import scale_shapes
from fedlora.row_lora.layout import adapter_layout
from fedlora.row_lora.library import row_lora
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def run_graph(
    session: ort.InferenceSession,
    base: BasePack,
    profile: Profile,
    tokens: NDArray[np.int64],  # [S, T]
    mask: NDArray[np.int64],  # [S, T]: 0 past a row's end; a decoder's have one length, but in ROW_PROFILES
    adapters: Sequence[Adapter | None],  # of each row; but for ROW_PROFILES all are the same
    *,
    takes_scales: bool = False,  # whether a graph of `rows` was exported so
) -> tuple[Floats, NDArray[np.int64]]:  # [S, P, V] and [S, P]
    """(the logits, the positions that they are of). Of an encoder: its scores or embeddings [S, 1, ...], and 0."""
    feeds: AbstractContextManager[Mapping[str, NDArray[Any]]] = (
        numbered(base, adapters)
        if profile == "kernel"
        else nullcontext(adapter_feeds(base, profile, adapters, takes_scales=takes_scales))
    )
    with feeds as adapter_inputs:
        if isinstance(base.model, DecoderShape):
            return _run_decoder(session, base.model, profile, tokens, mask.sum(1), adapter_inputs)
        scores = session.run(None, {"input_ids": tokens, "attention_mask": mask, **adapter_inputs})[0]
        return scores[:, None], np.zeros((len(tokens), 1), np.int64)


def adapter_feeds(
    base: BasePack, profile: Profile, adapters: Sequence[Adapter | None], *, takes_scales: bool = False
) -> Mapping[str, Floats]:
    """The adapter inputs of a batch, but for `kernel`. Raises AdapterError where a scaled value is not finite."""
    modules, first = base.model.linear_modules(), adapters[0]
    if profile == "rows":
        if any(is_of_head(name) for adapter in adapters if adapter is not None for name in adapter.extras):
            raise AdapterMismatchError(
                "an adapter with a head of its own does not run on a graph of profile rows, whose head is the base's; "
                "use one of profile compat or fast"
            )
        rows = [{} if adapter is None else input_values(adapter) for adapter in adapters]
        return row_values(rows, modules, scale_shapes(base.model) if takes_scales else {})
    adapter_inputs = input_values(first) if first is not None else {}
    return joined_values(adapter_inputs, modules, base.model.linear_groups()) if profile == "fast" else adapter_inputs


@contextmanager
def numbered(base: BasePack, adapters: Sequence[Adapter | None]) -> Iterator[Mapping[str, NDArray[np.int64]]]:
    """The adapter input of the profile `kernel`: numbers that hold within. Raises as `adapter_feeds`, and BuildError."""
    operator, modules, numbers = row_lora(), base.model.linear_modules(), list[int]()
    try:
        for adapter in adapters:
            adapter_inputs = {} if adapter is None else input_values(adapter)
            numbers.append(operator.add(adapter_layout(adapter_inputs, modules)) if adapter_inputs else 0)
        yield {NUMBERS: np.array(numbers, np.int64)}
    finally:
        for number in filter(None, numbers):
            operator.remove(number)


def _run_decoder(
    session: ort.InferenceSession,
    shape: DecoderShape,
    profile: Profile,
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64],  # [S]
    adapter_inputs: Mapping[str, NDArray[Any]],
) -> tuple[Floats, NDArray[np.int64]]:
    """Several steps, the last one over one token of each row: the cache is checked too."""
    cache = np.zeros((len(tokens), shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": cache for i in range(shape.num_layers) for kind in ("key", "value")}
    parts, ends, done = [], [], np.zeros_like(lengths)
    for new in _steps(profile, lengths):
        # A row with fewer new tokens than another is filled up with what comes next: nothing may depend on that.
        places = np.minimum(done[:, None] + np.arange(new.max()), tokens.shape[1] - 1)
        done = done + new
        feeds = {
            "input_ids": np.take_along_axis(tokens, places, 1),
            **_lengths(profile, done, new),
            **past,
            **adapter_inputs,
        }
        logits, *present = session.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        parts.append(logits)
        ends.append(done - 1)
    positions = (
        np.stack(ends, 1)
        if profile in ROW_PROFILES
        else np.broadcast_to(np.arange(lengths[0]), (len(tokens), lengths[0]))
    )
    return np.concatenate(parts, 1), positions


def _steps(profile: Profile, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """How many tokens each row [S] reads in each step: of ROW_PROFILES a prompt in two parts, each as its row has it."""
    one = np.ones_like(lengths)
    steps = [lengths // 2, lengths - lengths // 2 - 1, one] if profile in ROW_PROFILES else [lengths - 1, one]
    return [new for new in steps if new.any()]


def _lengths(
    profile: Profile, total: NDArray[np.int64], new: NDArray[np.int64]
) -> dict[str, NDArray[np.int32 | np.int64]]:
    """`total` tokens of each row after the step, `new` ones in it."""
    if profile not in ROW_PROFILES:
        return {"attention_mask": np.ones((len(total), total.max()), np.int64)}
    return {"lengths": total.astype(np.int32), "new_tokens": new.astype(np.int32)}
