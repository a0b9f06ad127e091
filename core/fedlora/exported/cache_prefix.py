"""Virtual tokens as an adapter file has them: the keys and values that a sequence's cache begins with.

For each layer L of a decoder, with P virtual tokens, under the names of the graph's own inputs:

    past_key_values.L.key      float32 [1, K, P, D]
    past_key_values.L.value    float32 [1, K, P, D]

So every graph takes them, whatever its profile, and the text's first token has position P. Of `prefix` they are the
adapter's own numbers. Of `prompt` they are what the base computes of its embeddings, normed and rotated as its own are. No
text changes them, so they are computed once, in torch, when the adapter is exported (entry-point group
`fedlora.prefixes`). From then on the two kinds are one thing.

Stacked, as a cache has them: the keys and the values of each layer in turn, [2 L, K, P, D].
"""

# L layers, K key/value heads, D head size, P virtual tokens

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, MissingExtraError
from fedlora.exported.sidecar import InputShapes
from fedlora.family import DecoderShape, ModelShape
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import MAX_VIRTUAL_TOKENS, LoraConfig
from fedlora.lora.kinds import kind_of
from fedlora.lora.kinds.virtual import WORD
from fedlora.plugins import first_that_loads

Heads = NDArray[np.float32]  # [2 L, K, P, D]
HeadsOf = Callable[[BasePack, Adapter], Heads]  # of an adapter with virtual tokens, on its base
_PAST = "past_key_values."


def is_of_cache(name: str) -> bool:
    """Whether a value of an adapter file is what the cache begins with."""
    return name.startswith(_PAST)


def virtual_tokens(values: Mapping[str, NDArray[np.float32]]) -> int:
    """P, of the values of a file; 0 where they are no keys and values."""
    return next((value.shape[2] for name, value in values.items() if is_of_cache(name)), 0)


def cache_inputs(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """{input: shape}, with -1 for the virtual tokens, in the order in which they are stacked; none of an encoder."""
    if not isinstance(model, DecoderShape):
        return {}
    shape = (1, model.num_kv_heads, -1, model.head_dim)
    return {f"{_PAST}{layer}.{kind}": shape for layer in range(model.num_layers) for kind in ("key", "value")}


def prefix_heads(adapter: Adapter, base: BasePack, where: str) -> Heads:
    """The stacked keys and values of an adapter of `prompt` or `prefix`, on its base.

    Raises MissingExtraError where they are those of `prompt` and no torch is there, AdapterMismatchError where they leave
    no room in the base's context, AdapterError where they are not finite.
    """
    shape, own = base.shape, adapter.extras[WORD]
    _check_room(len(own), shape, where)
    if adapter.config.method == "prefix":
        by_position = own.reshape(len(own), 2 * shape.num_layers, shape.num_kv_heads, shape.head_dim)
        return np.ascontiguousarray(by_position.transpose(1, 2, 0, 3))
    heads = _computed(where, kind_of(adapter).title)(base, adapter)
    if not np.isfinite(heads).all():
        raise AdapterError(
            f"{where}: its keys and values on this base are not finite: its values are too large; train it again"
        )
    return heads


def prefix_adapter(heads: Heads) -> Adapter:
    """The adapter, of kind `prefix`, that has these keys and values: for torch, whatever kind they were made of."""
    own = np.ascontiguousarray(heads.transpose(2, 0, 1, 3)).reshape(heads.shape[2], -1)
    return Adapter(LoraConfig(method="prefix", num_virtual_tokens=len(own)), {}, extras={WORD: own})


def unstacked(heads: Heads) -> dict[str, NDArray[np.float32]]:
    """{input: value}"""
    names = (f"{_PAST}{layer}.{kind}" for layer in range(len(heads) // 2) for kind in ("key", "value"))
    return {name: np.ascontiguousarray(each[None]) for name, each in zip(names, heads, strict=True)}


def stacked(values: Mapping[str, NDArray[np.float32]], shape: DecoderShape, where: str) -> Heads:
    """The values of a file, which `check_cache_inputs` has checked. Raises AdapterMismatchError for too many tokens."""
    heads = np.concatenate([values[name] for name in cache_inputs(shape)])
    _check_room(heads.shape[2], shape, where)
    return heads


def check_cache_inputs(values: Mapping[str, NDArray[np.float32]], inputs: InputShapes, where: str) -> None:
    """Raise AdapterMismatchError unless `values` are keys and values of every layer, for one number of virtual tokens."""
    expected = {name: shape for name, shape in inputs.items() if is_of_cache(name)}
    for name in sorted(values.keys() ^ expected.keys()):
        what = "missing" if name in expected else "beside keys and values of virtual tokens"
        raise AdapterMismatchError(
            f"{where}: {name} is {what}; expected a key and a value of every layer of the base, and nothing else: export "
            "the adapter again for this base"
        )
    counts = {value.shape[2] if value.ndim == 4 else 0 for value in values.values()}
    for name, value in values.items():
        if value.ndim != 4 or any(w not in (-1, got) for w, got in zip(expected[name], value.shape, strict=True)):
            want = " x ".join("virtual tokens" if w == -1 else str(w) for w in expected[name])
            raise AdapterMismatchError(f"{where}: {name} is {list(value.shape)}; the base expects {want}")
    if len(counts) != 1 or not 1 <= min(counts) <= MAX_VIRTUAL_TOKENS:
        raise AdapterMismatchError(
            f"{where}: keys and values of {sorted(counts)} virtual tokens; expected one number of them, from 1 to "
            f"{MAX_VIRTUAL_TOKENS}: export the adapter again"
        )


def _check_room(count: int, shape: DecoderShape, where: str) -> None:
    if count >= shape.max_positions:
        raise AdapterMismatchError(
            f"{where}: its {count} virtual tokens leave no room in the base's context of {shape.max_positions}; train one "
            "with fewer (lora.num_virtual_tokens)"
        )


def _computed(where: str, title: str) -> HeadsOf:
    found = first_that_loads("fedlora.prefixes")
    if found is None:
        raise MissingExtraError(
            f"{where}: the keys and values of {title} are what the base computes of it, once, in torch, and the extra "
            "'client' is not installed: pip install 'fedlora[client]'"
        )
    return cast(HeadsOf, found)
