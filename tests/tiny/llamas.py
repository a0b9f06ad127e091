"""Tiny random Llama models with a tokenizer, packs of them, and the oracles of any pack in transformers and PEFT."""

# S sequences, T tokens of each, V vocabulary, R rank

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import peft
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization, dequantize
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.row_lora.library import row_lora
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.reference.tolerances import TOLERANCE

BOS, EOS = 256, 257


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

ALL_RANKS = LoraConfig(
    rank=4,
    alpha=6.0,
    rank_pattern={
        "model.layers.0.self_attn.q_proj": 1,
        "model.layers.0.mlp.down_proj": 7,
        "model.layers.1.self_attn.v_proj": 2,
        "model.layers.1.mlp.gate_proj": 12,
    },
    alpha_pattern={"model.layers.0.mlp.down_proj": 3.0, "model.layers.1.self_attn.k_proj": 11.0},
)
LORAS = {
    "one-rank": LoraConfig(rank=4, alpha=8.0),
    "rank-and-alpha-patterns": ALL_RANKS,
    "rslora": LoraConfig(rank=8, alpha=5.0, use_rslora=True),
    "rslora-with-patterns": LoraConfig(
        rank=4,
        alpha=6.0,
        use_rslora=True,
        rank_pattern=ALL_RANKS.rank_pattern,
        alpha_pattern=ALL_RANKS.alpha_pattern,
    ),
    "attention-only": LoraConfig(rank=2, alpha=8.0, target_modules=("q_proj", "v_proj")),
}

Packs = Callable[[Variant], BasePack]


def assert_close(got: object, expected: object, dtype: Literal["bfloat16", "float32", "float64"] = "float32") -> None:
    """The largest difference is rounding, as measured by the largest expected value, which is not 0."""
    left, right = (
        np.asarray(value.detach().double() if isinstance(value, torch.Tensor) else value) for value in (got, expected)
    )
    assert left.shape == right.shape
    scale = float(np.abs(right).max())
    assert scale > 0
    assert float(np.abs(left - right).max()) <= TOLERANCE[dtype]["rtol"] * scale


def byte_tokenizer() -> Tokenizer:
    """One token a byte, with <s> and </s>; its post-processor adds both where it is asked to."""
    # BPE over the bytes' printable stand-ins, without a merge; token ids are in the order of these.
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert tokenizer.token_to_id("<s>") == BOS
    assert tokenizer.token_to_id("</s>") == EOS
    return tokenizer


def save_checkpoint(variant: Variant, directory: Path) -> None:
    """A Llama checkpoint as transformers itself saves it, with weights large enough for every one to count."""
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
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(variant.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 1.5 * noise / parameter.shape[1] ** 0.5)
    model.save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))


def save_pack(variant: Variant, directory: Path) -> BasePack:
    """The packed model in `directory`, and its checkpoint beside it."""
    checkpoint = directory.with_name(f"{directory.name}-checkpoint")
    save_checkpoint(variant, checkpoint)
    quantization = Quantization(
        bits=variant.bits,
        embedding_bits=variant.embedding_bits,
        block_size=variant.block_size,
        symmetric=variant.symmetric,
    )
    make_pack(str(checkpoint), directory, quantization)
    return open_pack(directory)


def made_once(folder: Path) -> Packs:
    """A function that gives the pack of a variant, made below `folder` when it is first asked for."""

    @cache
    def pack(variant: Variant) -> BasePack:
        return save_pack(variant, Path(tempfile.mkdtemp(dir=folder)) / "pack")

    return pack


def oracle(base: BasePack, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model, of whatever family, over the dequantized weights of a pack."""
    config = AutoConfig.from_pretrained(base.directory)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    modules = base.shape.linear_modules() | base.shape.vocabulary_modules()
    state = {f"{module}.weight": torch.from_numpy(dequantize(base.matrix(module)).copy()) for module in modules}
    for tensor in base.shape.float_tensors():
        state[tensor] = torch.from_numpy(base.floats(tensor) - np.float32(base.shape.float_offset(tensor)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if base.shape.tie_word_embeddings else set())
    model.tie_weights()
    return model.eval()


@contextmanager
def _pefts_own_warnings() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for a name that is deprecated there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def read_by_peft(base: BasePack, directory: Path) -> Any:
    """The model of an adapter's directory as PEFT itself reads it, on the dequantized base."""
    with _pefts_own_warnings():
        return peft.PeftModel.from_pretrained(oracle(base), str(directory)).eval()


def peft_oracle(
    base: BasePack, adapter: Adapter, dtype: torch.dtype = torch.float32
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """PEFT's model with the factors of `adapter`, and {module: (lora_A, lora_B)}, the parameters that it trains.

    `dtype` is the base's; the factors are float32, as PEFT has them by default.
    """
    config = adapter.config
    theirs = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.use_rslora,
        target_modules=list(config.target_modules),
        rank_pattern={re.escape(module): rank for module, rank in config.rank_pattern.items()},
        alpha_pattern={re.escape(module): alpha for module, alpha in config.alpha_pattern.items()},
        lora_dropout=0.0,
        bias="none",
    )
    with _pefts_own_warnings():
        model = peft.get_peft_model(oracle(base, dtype), theirs)
    parameters = {}
    for module, pair in adapter.pairs.items():
        layer = model.base_model.model.get_submodule(module)
        factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        with torch.no_grad():
            for factor, value in zip(factors, (pair.lora_A, pair.lora_B), strict=True):
                assert factor.shape == value.shape
                factor.copy_(torch.tensor(value))
        parameters[module] = factors
    assert len(parameters) * 2 == sum(parameter.requires_grad for parameter in model.parameters())
    return model, parameters


def random_adapter(base: BasePack, config: LoraConfig | None = None, seed: int = 1) -> Adapter:
    """An adapter in which every factor counts: B is not zero. By default it sits on every linear module."""
    generator = np.random.default_rng(seed)
    if config is None:
        leaves = dict.fromkeys(module.rsplit(".", 1)[-1] for module in base.shape.linear_modules())
        config = replace(LORAS["one-rank"], target_modules=tuple(leaves))
    known = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    modules = base.shape.linear_modules()
    assert all(name in modules for pattern in known.values() for name in pattern)
    fresh = initial_adapter(config, modules, generator)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.1, pair.lora_B.shape).astype(np.float32))
        for module, pair in fresh.pairs.items()
    }
    return Adapter(config, pairs)


def random_tokens(base: BasePack, sequences: int, length: int, seed: int = 2) -> NDArray[np.int64]:
    """Token ids [S, T]."""
    return np.random.default_rng(seed).integers(0, base.shape.vocab_size, (sequences, length))


def changed(
    adapter: Adapter,
    change: Callable[[str, NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> Adapter:
    """`adapter` with each module's factors replaced by those that `change(module, lora_A, lora_B)` gives."""
    pairs = {
        module: LoraPair(*change(module, pair.lora_A.copy(), pair.lora_B.copy()))
        for module, pair in adapter.pairs.items()
    }
    return Adapter(adapter.config, pairs)


def open_session(graph: Path) -> Any:
    """An ONNX Runtime session as the exporter's check and the engine open it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
    options.intra_op_num_threads = 1
    if graph.name.endswith(".kernel.onnx"):
        options.register_custom_ops_library(str(row_lora().library))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def graph_logits(
    session: Any,
    base: BasePack,
    tokens: NDArray[np.int64],  # [S, T]
    components: Mapping[str, NDArray[np.float32]] | None = None,
    steps: Sequence[int] = (),
) -> NDArray[np.float32]:  # [S, T, V]
    """What a graph gives for tokens that are read in parts of `steps` tokens (default: all at once)."""
    shape, sequences = base.shape, len(tokens)
    empty = np.zeros((sequences, shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": empty for i in range(shape.num_layers) for kind in ("key", "value")}
    parts, done = [], 0
    for count in steps or (tokens.shape[1],):
        feeds = {
            "input_ids": tokens[:, done : done + count],
            "attention_mask": np.ones((sequences, done + count), np.int64),
        }
        names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
        logits, *present = session.run(names, {**feeds, **past, **(components or {})})
        past = dict(zip(past, present, strict=True))
        parts.append(logits)
        done += count
    assert done == tokens.shape[1]
    return np.concatenate(parts, 1)
