"""The names of a checkpoint's tensors, found under those that config.json implies, as transformers finds them.

LayerNorm.gamma, LayerNorm.beta    LayerNorm.weight and .bias, in checkpoints that began in TensorFlow
PREFIX.NAME for NAME, or NAME for PREFIX.NAME    a model saved with its head and read without, or the other way round
_orig_mod., module.                what torch.compile and DataParallel put before the names; transformers does not
                                   read these, but what they stand for is never in doubt
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

_COMPILED = "_orig_mod."
_PARALLEL = "module."
_LEGACY = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


def unwrapped(names: Collection[str]) -> tuple[dict[str, str], str]:
    """({name without wrappers: name in the file}, the wrappers that are taken off, or "").

    Raises ValueError where two tensors would have one name.
    """
    taken = []
    stripped = {name: name for name in names}
    if names and all(name.startswith(_PARALLEL) for name in names):
        stripped = {name.removeprefix(_PARALLEL): stored for name, stored in stripped.items()}
        taken.append(_PARALLEL)
    if any(_COMPILED in name for name in stripped):
        stripped = _without_compiled(stripped)
        taken.append(_COMPILED)
        if all(name.startswith(_PARALLEL) for name in stripped):
            stripped = {name.removeprefix(_PARALLEL): stored for name, stored in stripped.items()}
            taken.append(_PARALLEL)
    return stripped, " and ".join(taken)


def _without_compiled(names: Mapping[str, str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, stored in names.items():
        plain = name.replace(_COMPILED, "")
        if plain in result:
            raise ValueError(f"{stored} and {result[plain]} are both {plain}")
        result[plain] = stored
    return result


def candidates(name: str, prefix: str) -> Iterable[str]:
    """The names under which a checkpoint may hold tensor `name` of a model with `prefix` ("bert"), the likeliest first."""
    plain = name.removeprefix(f"{prefix}.")
    for wanted in (name, plain if plain != name else f"{prefix}.{name}"):
        yield wanted
        for now, before in _LEGACY:
            if wanted.endswith(now):
                yield wanted.removesuffix(now) + before


def alike(name: str, names: Iterable[str]) -> str | None:
    """A stored name that ends as `name` does: the same tensor under a prefix that nobody knows."""
    ends = [f".{name}", f".{name.partition('.')[2]}"]
    for end in ends:
        for stored in names:
            if stored.endswith(end) and end != ".":
                return stored
    return None
