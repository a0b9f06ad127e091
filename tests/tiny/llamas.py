"""Tiny random Llama models: every way to store a weight and to attend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.base.quantize import Quantization
from transformers import LlamaConfig

from tests.tiny.decoders import save_decoder
from tests.tiny.packs import checkpoint_of, made_once, packed
from tests.tiny.tokenizer import BOS, EOS


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One tiny model and how it is packed."""

    bits: int = 4
    embedding_bits: int = 8
    block_size: int = 32
    symmetric: bool = True
    tied: bool = True
    hidden: int = 64
    inner: int = 172  # no multiple of a block: the last one is padded
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 8
    layers: int = 2
    vocab: int = 258
    context: int = 64
    theta: float = 10000.0
    seed: int = 0


DEFAULT = Variant()
# Every way to store a weight and every way to attend, each at least once.
VARIANTS = {
    "4-bit-symmetric-tied-gqa-head8": DEFAULT,
    "4-bit-asymmetric-untied-mha-head16": Variant(
        symmetric=False, tied=False, heads=4, kv_heads=4, head_dim=16, theta=500000.0
    ),
    "8-bit-symmetric-untied-mqa-head32": Variant(bits=8, tied=False, heads=2, kv_heads=1, head_dim=32),
    "8-bit-asymmetric-tied-mha-head8": Variant(bits=8, symmetric=False, kv_heads=8),
    "4-bit-asymmetric-block64-4-bit-embedding": Variant(
        symmetric=False, block_size=64, embedding_bits=4, heads=4, kv_heads=2, head_dim=16
    ),
    "4-bit-symmetric-block64-4-bit-untied-head": Variant(block_size=64, embedding_bits=4, tied=False, inner=192),
    "8-bit-asymmetric-block128-wide-heads": Variant(
        bits=8, symmetric=False, block_size=128, hidden=128, inner=300, heads=8, kv_heads=2, head_dim=32, layers=1
    ),
}


Packs = Callable[[Variant], BasePack]


def save_checkpoint(variant: Variant, directory: Path) -> None:
    """A Llama checkpoint as transformers itself saves it."""
    config = LlamaConfig(
        vocab_size=variant.vocab,
        hidden_size=variant.hidden,
        intermediate_size=variant.inner,
        num_hidden_layers=variant.layers,
        num_attention_heads=variant.heads,
        num_key_value_heads=variant.kv_heads,
        head_dim=variant.head_dim,
        max_position_embeddings=variant.context,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": variant.theta},
        tie_word_embeddings=variant.tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    save_decoder(config, directory, seed=variant.seed)


def save_pack(variant: Variant, directory: Path) -> BasePack:
    """The packed model in `directory`, and its checkpoint beside it."""
    save_checkpoint(variant, checkpoint_of(directory))
    quantization = Quantization(
        bits=variant.bits,
        embedding_bits=variant.embedding_bits,
        block_size=variant.block_size,
        symmetric=variant.symmetric,
    )
    return packed(checkpoint_of(directory), directory, quantization)


llama_pack = made_once(save_pack)
