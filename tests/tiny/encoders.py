"""Tiny random encoders as transformers saves them, packs of them, and their oracles in transformers and PEFT."""

# S texts, T tokens of the longest

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization, dequantize
from fedlora.family import EncoderShape
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from numpy.typing import NDArray
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

from tests.tiny.llamas import byte_tokenizer

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
Packs = Callable[[str], BasePack]


def save_encoder(name: str, directory: Path, *, seed: int = 0, spread: float = 1.0, **changes: Any) -> None:
    """A checkpoint as transformers itself saves it, with weights large enough for every one to count.

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
    checkpoint = directory.with_name(f"{directory.name}-checkpoint")
    save_encoder(name, checkpoint, **how)
    make_pack(str(checkpoint), directory, Quantization(bits=bits, embedding_bits=8, block_size=32, symmetric=True))
    return open_pack(directory)


def encoders_made_once(folder: Path) -> Packs:
    """A function that gives the pack of an encoder, made below `folder` when it is first asked for."""

    @cache
    def pack(name: str) -> BasePack:
        return save_encoder_pack(name, Path(tempfile.mkdtemp(dir=folder)) / "pack")

    return pack


def shape_of(base: BasePack) -> EncoderShape:
    assert isinstance(base.model, EncoderShape)
    return base.model


def encoder_oracle(base: BasePack, name: str) -> Any:
    """transformers' own model over the dequantized weights of a pack."""
    model_class, config_class, _ = EVERY[name]
    model = model_class._from_config(config_class.from_pretrained(base.directory), attn_implementation="eager")
    shape = shape_of(base)
    modules = shape.linear_modules() | shape.vocabulary_modules()
    state = {f"{module}.weight": torch.from_numpy(dequantize(base.matrix(module)).copy()) for module in modules}
    state |= {tensor: torch.from_numpy(base.floats(tensor).copy()) for tensor in shape.float_tensors()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("pooler.") for key in missing)  # which no embedding reads
    return model.eval()


def peft_encoder(base: BasePack, name: str, adapter: Adapter) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """PEFT's model with the factors of `adapter`, the head frozen, and {module: its lora_A, lora_B}, which train."""
    config = adapter.config
    # By their full names: the leaf `dense` is a name in the head too, which gets no adapter.
    theirs = peft.LoraConfig(
        task_type="SEQ_CLS", r=config.rank, lora_alpha=config.alpha, target_modules=list(adapter.pairs),
        lora_dropout=0.0, bias="none",
    )  # fmt: skip
    with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5.23 for a name that is deprecated there
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        model = peft.get_peft_model(encoder_oracle(base, name), theirs)
    parameters = {}
    for module, pair in adapter.pairs.items():
        layer = model.base_model.model.get_submodule(module)
        factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        with torch.no_grad():
            for factor, value in zip(factors, (pair.lora_A, pair.lora_B), strict=True):
                factor.copy_(torch.tensor(value))
        parameters[module] = factors
    return model.eval(), parameters


def leaves_of(base: BasePack) -> tuple[str, ...]:
    """The last parts of the names of its linear modules."""
    return tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in shape_of(base).linear_modules()))


def encoder_adapter(base: BasePack, config: LoraConfig | None = None, seed: int = 1) -> Adapter:
    """An adapter, by default on every linear module, in which every factor counts: B is not zero."""
    config = config or LoraConfig(rank=4, alpha=8.0, target_modules=leaves_of(base))
    generator = np.random.default_rng(seed)
    fresh = initial_adapter(config, shape_of(base).linear_modules(), generator)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.1, pair.lora_B.shape).astype(np.float32))
        for module, pair in fresh.pairs.items()
    }
    return Adapter(config, pairs)


def random_texts(
    base: BasePack, lengths: tuple[int, ...], seed: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids [S, T] of texts of these lengths, padded on the right, and the mask [S, T], 1 where there is text."""
    shape, generator = shape_of(base), np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    # The padding's own id is in no text: RoBERTa, to transformers, counts its positions over all other ids.
    tokens = generator.integers(shape.pad_token_id + 1, shape.vocab_size, mask.shape)
    return np.where(mask == 1, tokens, shape.pad_token_id), mask
