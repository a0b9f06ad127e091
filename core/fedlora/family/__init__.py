"""Model families: ONE description of each, read by the packer, the trainer and the exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.errors import CheckpointError
from fedlora.family.decoder import (
    ATTENTION_MODULES,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEAR_MODULES,
    MLP_MODULES,
    DecoderShape,
    layer_name,
)
from fedlora.family.decoders import DECODERS, read_decoder
from fedlora.family.encoder import EncoderShape
from fedlora.family.encoders import ENCODERS, read_encoder
from fedlora.family.rotary import Rotary

__all__ = [
    "ATTENTION_MODULES", "EMBEDDING", "FINAL_NORM", "HEAD", "LINEAR_MODULES", "MLP_MODULES", "DecoderShape",
    "EncoderShape", "ModelShape", "Rotary", "decoder_shape", "layer_name", "model_shape",
]  # fmt: skip

ModelShape = DecoderShape | EncoderShape


def model_shape(config: Mapping[str, Any], where: str) -> ModelShape:
    """Read a Hugging Face `config.json`. Raises CheckpointError for a model that is of no known family, by name."""
    architecture = _architecture(config, where)
    try:
        if architecture in DECODERS:
            return read_decoder(architecture, config)
        return read_encoder(architecture, config)
    except KeyError as error:
        raise CheckpointError(f"{where}: {error.args[0]} is missing; a config.json of {architecture} has it") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where}: not a sound config.json of {architecture}: {error}; mend it, or pack another model"
        ) from None


def decoder_shape(config: Mapping[str, Any], where: str) -> DecoderShape:
    """Read the `config.json` of a decoder. Raises CheckpointError for an encoder too."""
    shape = model_shape(config, where)
    if not isinstance(shape, DecoderShape):
        raise CheckpointError(f"{where}: {_architecture(config, where)} is an encoder; expected {', '.join(DECODERS)}")
    return shape


def _architecture(config: Mapping[str, Any], where: str) -> str:
    named = config.get("architectures")
    known = [*DECODERS, *ENCODERS]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        got = ", ".join(map(str, named)) if isinstance(named, list) else named or "none"
        raise CheckpointError(f"{where}: architecture {got} is not supported; expected one of {', '.join(known)}")
    return str(named[0])
