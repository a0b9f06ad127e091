"""The decoders: one description of each family's variations, read by the packer, the trainer and the exporter.

A block, x [N, H]; what is in brackets only some families have:

    n = norm(x)      h = x + [norm](o(attention(rope([norm](q(n))), rope([norm](k(n))), v(n))))
    m = norm(h)      y = h + [norm](down(activation(gate(m)) * up(m)))

    attention(q, k, v) = softmax(cap(scale * q k^T)) v      over the last `window` keys, or all
    logits = cap(head(norm(y)))                             cap(z) = c tanh(z / c), or z
    norm(x) = x / sqrt(mean(x^2) + eps) * weight            (RMSNorm, arXiv:1910.07467)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedlora.family.rotary import Rotary

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
LINEAR_MODULES = (*ATTENTION_MODULES, *MLP_MODULES)

EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
HEAD = "lm_head"

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNorms:
    """The names within a layer of the norms before and after its two halves; None: there is none."""

    before_attention: str = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The sizes, constants and variations of one decoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rotary: Rotary
    tie_word_embeddings: bool
    tokens_before_text: tuple[int, ...]  # what the tokenizer puts there: none, or one that is called bos
    eos_token_ids: tuple[int, ...]  # each ends a text; the first is the one that is learned
    attention_scale: float
    model_type: str = "llama"
    tokens_after_text: tuple[int, ...] = ()  # what the tokenizer puts there of its own accord
    local_rotary: Rotary | None = None  # of the layers with a window, where it is another
    windows: tuple[int, ...] = ()  # of each layer: how many keys a query sees, its own among them; 0: all
    activation: Activation = "silu"
    joined_modules: bool = False  # one module gives q, k and v, another gate and up, in this order (Phi-3)
    biases: tuple[str, ...] = ()  # the linear modules of a layer that have one, such as q_proj
    qk_norm: bool = False  # a norm over each head of q and of k, with weights [D] that the heads share
    norms: BlockNorms = BlockNorms()
    norm_offset: float = 0.0  # what a checkpoint's norm weights lack: a pack holds weight + offset
    embedding_scale: float = 1.0
    attention_cap: float = 0.0  # 0: none
    logit_cap: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError, by the names of the fields, for constants that no model has."""
        positive = {
            "rms_norm_eps": self.rms_norm_eps,
            "attention_scale": self.attention_scale,
            "embedding_scale": self.embedding_scale,
        }
        caps = {"attention_cap": self.attention_cap, "logit_cap": self.logit_cap}
        wrong = [name for name, value in positive.items() if not 0 < value < math.inf]
        wrong += [name for name, value in caps.items() if not 0 <= value < math.inf]
        wrong += ["windows"] if any(window < 0 for window in self.windows) else []
        if wrong:
            values = {**positive, **caps, "windows": self.windows}
            got = ", ".join(f"{name} {values[name]!r:.60}" for name in wrong)
            raise ValueError(f"expected positive, finite constants and no negative cap or window, got {got}")

    @property
    def base_prefix(self) -> str:
        """What begins the names of all tensors but the head's; a checkpoint of the model without its head lacks it."""
        return "model"

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text. A model that was trained on documents in a row ends one by beginning the next."""
        return tuple(dict.fromkeys((*self.eos_token_ids, *self.tokens_after_text, *self.tokens_before_text)))

    @property
    def bos_token_id(self) -> int | None:
        """The token that a text begins with, as its tokenizer has it; None where that puts none there."""
        return self.tokens_before_text[0] if self.tokens_before_text else None

    def rotary_of(self, layer: int) -> Rotary:
        return self.local_rotary if self.local_rotary and self.window_of(layer) else self.rotary

    def window_of(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    def parts(self) -> dict[str, tuple[int, ...]]:
        """{linear module within a layer: the sizes of the parts of its output}, in the order of the computation."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        inner, hidden = self.intermediate_size, self.hidden_size
        into: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (query,), "self_attn.k_proj": (key_value,), "self_attn.v_proj": (key_value,),
        }  # fmt: skip
        gated: dict[str, tuple[int, ...]] = {"mlp.gate_proj": (inner,), "mlp.up_proj": (inner,)}
        if self.joined_modules:
            into = {"self_attn.qkv_proj": (query, key_value, key_value)}
            gated = {"mlp.gate_up_proj": (inner, inner)}
        return {**into, "self_attn.o_proj": (hidden,), **gated, "mlp.down_proj": (hidden,)}

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """{module name: (O, I)} of every linear layer in the blocks, in the order of the computation."""
        columns = {"o_proj": self.num_heads * self.head_dim, "down_proj": self.intermediate_size}
        shapes = {
            name: (sum(parts), columns.get(name.split(".")[1], self.hidden_size))
            for name, parts in self.parts().items()
        }
        return {f"{layer_name(i)}.{name}": shape for i in range(self.num_layers) for name, shape in shapes.items()}

    def linear_groups(self) -> list[tuple[str, ...]]:
        """The linear modules, those that read the same input together."""
        qkv, gated = (
            (("qkv_proj",), ("gate_up_proj",)) if self.joined_modules else (ATTENTION_MODULES[:3], MLP_MODULES[:2])
        )
        halves = (("self_attn", qkv), ("self_attn", ("o_proj",)), ("mlp", gated), ("mlp", ("down_proj",)))
        return [
            tuple(f"{layer_name(layer)}.{half}.{name}" for name in group)
            for layer in range(self.num_layers)
            for half, group in halves
        ]

    def fed_by(self, module: str) -> tuple[str, int] | None:
        """(another module, a place among its outputs): from there on they are this one's inputs, each times something, so
        that what scales the one scales the other. None where no module's outputs are."""
        half, _, name = module.rpartition(".")
        query, joined = self.num_heads * self.head_dim, self.joined_modules
        if name == "down_proj":
            return (f"{half}.gate_up_proj", self.intermediate_size) if joined else (f"{half}.up_proj", 0)
        if name == "o_proj" and self.num_heads == self.num_kv_heads:  # else several inputs are made of one output
            return (f"{half}.qkv_proj", 2 * query) if joined else (f"{half}.v_proj", 0)
        return None

    def scaled_inputs(self) -> tuple[str, ...]:
        """(): what scales the input of a decoder's module is in the output of another (`fed_by`)."""
        return ()

    def vocabulary_modules(self) -> dict[str, tuple[int, int]]:
        """{module name: (V, H)} of the embedding and, where it is not tied to it, the head."""
        names = (EMBEDDING,) if self.tie_word_embeddings else (EMBEDDING, HEAD)
        return dict.fromkeys(names, (self.vocab_size, self.hidden_size))

    def norm_modules(self) -> dict[str, int]:
        """{name: size} of the norms, each a vector."""
        norms = self.norms
        block = [norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp]
        sizes = {name: self.hidden_size for name in block if name}
        if self.qk_norm:
            sizes |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
        layers = {f"{layer_name(i)}.{name}": size for i in range(self.num_layers) for name, size in sizes.items()}
        return layers | {FINAL_NORM: self.hidden_size}

    def float_tensors(self) -> dict[str, tuple[int, ...]]:
        """{tensor name: shape} of what is stored in float32: norms and biases."""
        tensors: dict[str, tuple[int, ...]] = {f"{name}.weight": (size,) for name, size in self.norm_modules().items()}
        for module, (rows, _) in self.linear_modules().items():
            if self.is_biased(module):
                tensors[f"{module}.bias"] = (rows,)
        return tensors

    def head_parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """{what may train whole beside an adapter: {tensor name: shape}}: the head."""
        return {HEAD: {f"{HEAD}.weight": (self.vocab_size, self.hidden_size)}}

    def head_inputs(self) -> dict[str, tuple[int, ...]]:
        """{}: no graph of a decoder takes a head."""
        return {}

    def float_offset(self, tensor: str) -> float:
        """What is added to a tensor of the checkpoint before it is stored."""
        return self.norm_offset if tensor.removesuffix(".weight") in self.norm_modules() else 0.0

    def is_biased(self, module: str) -> bool:
        """Whether a linear module has a bias, MODULE.bias [O]."""
        return module.rsplit(".", 1)[-1] in self.biases


def layer_name(layer: int) -> str:
    return f"model.layers.{layer}"
