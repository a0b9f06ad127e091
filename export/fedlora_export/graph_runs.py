"""Run an exported graph over a few tokens, each row with an adapter, whatever its profile."""

# S rows, T tokens of each, V vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from fedlora.adapter import Adapter
from fedlora.family import DecoderShape
from fedlora.joined_slots import joined_values
from fedlora.pack import BasePack
from fedlora.profiles import Profile
from fedlora.slots import slot_names, slot_values
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def run_graph(
    session: ort.InferenceSession,
    base: BasePack,
    profile: Profile,
    tokens: NDArray[np.int64],  # [S, T]
    mask: NDArray[np.int64],  # [S, T]: 0 where a text is padded at its end; a decoder's rows are not padded
    adapters: Sequence[Adapter | None],  # of each row; but for `rows` all are the same
) -> tuple[Floats, NDArray[np.int64]]:  # [S, P, V] and [P]
    """(the logits, the positions that they are of). Of an encoder: its scores or embeddings [S, 1, ...], and 0."""
    slots = adapter_feeds(base, profile, adapters)
    if not isinstance(base.model, DecoderShape):
        scores = session.run(None, {"input_ids": tokens, "attention_mask": mask, **slots})[0]
        return scores[:, None], np.zeros(1, np.int64)
    return _run_decoder(session, base.model, profile, tokens, slots)


def adapter_feeds(base: BasePack, profile: Profile, adapters: Sequence[Adapter | None]) -> Mapping[str, Floats]:
    """The adapter inputs of a batch. Raises AdapterError where a scaled value is not finite."""
    modules, first = base.model.linear_modules(), adapters[0]
    if profile == "rows":
        return _stacked([{} if adapter is None else slot_values(adapter) for adapter in adapters], modules)
    slots = slot_values(first) if first is not None else {}
    return joined_values(slots, modules, base.model.linear_groups()) if profile == "fast" else slots


def _stacked(slots: Sequence[Mapping[str, Floats]], modules: Mapping[str, tuple[int, int]]) -> dict[str, Floats]:
    """A [S, I, R] and B [S, R, O] of every module: a row of a smaller rank, or without an adapter, is padded with zeros."""
    stacked: dict[str, Floats] = {}
    for module, (rows, columns) in modules.items():
        name_a, name_b = slot_names(module)
        rank = max(own[name_a].shape[1] if name_a in own else 0 for own in slots)
        stacked[name_a] = np.zeros((len(slots), columns, rank), np.float32)
        stacked[name_b] = np.zeros((len(slots), rank, rows), np.float32)
        for row, own in enumerate(slots):
            if name_a in own:
                stacked[name_a][row, :, : own[name_a].shape[1]] = own[name_a]
                stacked[name_b][row, : own[name_b].shape[0]] = own[name_b]
    return stacked


def _run_decoder(
    session: ort.InferenceSession,
    shape: DecoderShape,
    profile: Profile,
    tokens: NDArray[np.int64],
    slots: Mapping[str, Floats],
) -> tuple[Floats, NDArray[np.int64]]:
    """One step over all tokens but the last, then one over the last: the cache is checked too."""
    count, length = tokens.shape
    cache = np.zeros((count, shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": cache for i in range(shape.num_layers) for kind in ("key", "value")}
    parts, done = [], 0
    for part in (tokens[:, :-1], tokens[:, -1:]):
        done += part.shape[1]
        feeds = {"input_ids": part, **_lengths(profile, count, done, part.shape[1]), **past, **slots}
        logits, *present = session.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        parts.append(logits)
    positions = np.array([length - 2, length - 1]) if profile == "rows" else np.arange(length)
    return np.concatenate(parts, 1), positions


def _lengths(profile: Profile, rows: int, total: int, new: int) -> dict[str, NDArray[np.int32 | np.int64]]:
    if profile != "rows":
        return {"attention_mask": np.ones((rows, total), np.int64)}
    return {"lengths": np.full(rows, total, np.int32), "new_tokens": np.full(rows, new, np.int32)}
