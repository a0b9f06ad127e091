"""The heads of a base that may train whole beside an adapter: which there are, and how they begin."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.errors import ConfigError
from fedlora.family import EMBEDDING, HEAD, ModelShape
from fedlora.lora.adapter import Extras
from fedlora.lora.config import WHOLE_HEAD


def extra_shapes(names: Iterable[str], model: ModelShape) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} of what `lora.modules_to_save` names. Raises ConfigError for what is no head of the base.

    `auto` is the whole head of an encoder, as of PEFT's models for classification, and nothing of a decoder.
    """
    parts, shapes = model.head_parts(), dict[str, tuple[int, ...]]()
    names = tuple(names)
    if names == (WHOLE_HEAD,):
        names = () if HEAD in parts else tuple(parts)
    for name in names:
        if name not in parts:
            possible = f"it takes {' or '.join(parts)}" if parts else "it has no head; leave it out"
            raise ConfigError(f"lora.modules_to_save: {name} is no head of the base ({model.model_type}); {possible}")
        shapes |= parts[name]
    return shapes


def initial_extras(names: Iterable[str], base: BasePack) -> Extras:
    """The tensors of these parts of the head, as the base has them, in float32. Raises ConfigError."""
    extras = {}
    for name in extra_shapes(names, base.model):
        if name == f"{HEAD}.weight":  # of a decoder: quantized, and perhaps the embedding
            module = HEAD if HEAD in base.model.vocabulary_modules() else EMBEDDING
            extras[name] = dequantize(base.matrix(module))
        else:
            extras[name] = np.asarray(base.floats(name), np.float32)
    return extras
