"""Tiny random encoders as transformers itself saves them."""

# S texts, T tokens of the longest

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fedlora.base.pack import BasePack
from fedlora.base.quantize import Quantization
from fedlora.family import EncoderShape
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from tests.tiny.packs import checkpoint_of, made_once, packed
from tests.tiny.tokenizer import byte_tokenizer

LABELS = ("sad", "glad", "neither")
VOCABULARY = 260

_SIZES = {
    "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4, "type_vocab_size": 2,
    "max_position_embeddings": 40,
}  # fmt: skip
_DISTILBERT_SIZES = {"dim": 64, "hidden_dim": 172, "n_layers": 2, "n_heads": 8, "max_position_embeddings": 40}

_Classes = tuple[Any, Any, dict[str, Any]]  # of a model, its configuration, and the sizes
ENCODERS: dict[str, _Classes] = {
    "bert": (BertForSequenceClassification, BertConfig, _SIZES),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, {**_SIZES, "type_vocab_size": 1}),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig, _DISTILBERT_SIZES),
}
BARE: dict[str, _Classes] = {
    "bare bert": (BertModel, BertConfig, _SIZES),
    "bare roberta": (RobertaModel, RobertaConfig, {**_SIZES, "type_vocab_size": 1}),
    "bare distilbert": (DistilBertModel, DistilBertConfig, _DISTILBERT_SIZES),
}
EVERY = ENCODERS | BARE


def save_encoder(name: str, directory: Path, *, seed: int = 0, spread: float = 1.0, **changes: Any) -> None:
    """A checkpoint with a tokenizer; every weight is large enough to count.

    A matrix varies by `spread` over the root of its columns.
    """
    model_class, config_class, sizes = EVERY[name]
    fields = {**sizes, "vocab_size": VOCABULARY, "layer_norm_eps": 1e-5, **changes}
    if name in ENCODERS:
        fields = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}, **fields}
    model = model_class(config_class(**fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else spread * noise / parameter.shape[1] ** 0.5)
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter -= 1  # small, and of both signs
            elif parameter.ndim == 2 and "embeddings" in key:
                parameter *= parameter.shape[1] ** 0.5
    model.save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))


def save_encoder_pack(name: str, directory: Path, bits: int = 4, **how: Any) -> BasePack:
    """The packed encoder in `directory`, and its checkpoint beside it."""
    save_encoder(name, checkpoint_of(directory), **how)
    quantization = Quantization(bits=bits, embedding_bits=8, block_size=32, symmetric=True)
    return packed(checkpoint_of(directory), directory, quantization)


encoder_pack = made_once(save_encoder_pack)


def shape_of(base: BasePack) -> EncoderShape:
    assert isinstance(base.model, EncoderShape)
    return base.model
