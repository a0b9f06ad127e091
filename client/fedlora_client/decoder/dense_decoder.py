"""A decoder over dense weights, in plain autograd: for full fine-tuning, and the slow reference of the tests.

Any tensor may stand for a weight, so W + gamma B A makes it a LoRA model, by the definition.
"""

# S sequences, T tokens of each, N = S T rows, H hidden size, V vocabulary, Q query heads, K key/value heads, D head size

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from fedlora.family import EMBEDDING, FINAL_NORM, HEAD, DecoderShape, layer_name
from torch import Tensor

from fedlora_client.decoder.rotary import ropes_of
from fedlora_client.ops.ops import Rope


def dense_logits(
    shape: DecoderShape,
    weights: Mapping[str, Tensor],  # {module: weight}, and {MODULE.bias: bias}
    tokens: Tensor,  # int64 [S, T]
    starts: Tensor,  # int64 [S, T], where the example of each position begins
) -> Tensor:  # [S, T, V]
    """The scores of each next token."""
    x = weights[EMBEDDING][tokens] * shape.embedding_scale
    ropes = ropes_of(shape, starts)
    for layer in range(shape.num_layers):
        prefix, names = layer_name(layer), shape.norms
        normed = _norm(shape, weights, x, f"{prefix}.{names.before_attention}")
        out = _attention(shape, weights, layer, normed, starts, ropes[layer])
        x = x + (_norm(shape, weights, out, f"{prefix}.{names.after_attention}") if names.after_attention else out)
        out = _mlp(shape, weights, layer, _norm(shape, weights, x, f"{prefix}.{names.before_mlp}"))
        x = x + (_norm(shape, weights, out, f"{prefix}.{names.after_mlp}") if names.after_mlp else out)
    normed = _norm(shape, weights, x, FINAL_NORM)
    return _limited(normed @ weights[EMBEDDING if shape.tie_word_embeddings else HEAD].T, shape.logit_cap)


def _attention(
    shape: DecoderShape, weights: Mapping[str, Tensor], layer: int, normed: Tensor, starts: Tensor, rope: Rope
) -> Tensor:
    """What the attention of a layer adds, before a norm that may follow; normed [S, T, H]"""
    prefix, (sequences, length) = f"{layer_name(layer)}.self_attn", starts.shape
    query = torch.arange(length, device=starts.device)
    first, window = starts, shape.window_of(layer)
    if window:
        first = torch.maximum(starts, query - window + 1)
    allowed = (query >= first[..., None]) & (query <= query[:, None])  # [S, T, T]
    by_position = rope[0].view(sequences, 1, length, -1), rope[1].view(sequences, 1, length, -1)

    def by_head(rows: Tensor) -> Tensor:
        """[S, T, heads D] as [S, heads, T, D]"""
        return rows.view(sequences, length, -1, shape.head_dim).transpose(1, 2)

    names = ("qkv_proj",) if shape.joined_modules else ("q_proj", "k_proj", "v_proj")
    q, k, v = map(by_head, _parts(shape, weights, layer, [f"self_attn.{name}" for name in names], normed))
    if shape.qk_norm:
        q, k = _norm(shape, weights, q, f"{prefix}.q_norm"), _norm(shape, weights, k, f"{prefix}.k_norm")
    groups = shape.num_heads // shape.num_kv_heads
    k, v = (part.repeat_interleave(groups, 1) for part in (_rotated(k, by_position), v))
    scores = _limited(_rotated(q, by_position) @ k.transpose(-1, -2) * shape.attention_scale, shape.attention_cap)
    mixed = scores.masked_fill(~allowed.unsqueeze(1), -math.inf).softmax(-1) @ v
    return _linear(weights, f"{prefix}.o_proj", mixed.transpose(1, 2).flatten(2))


def _mlp(shape: DecoderShape, weights: Mapping[str, Tensor], layer: int, normed: Tensor) -> Tensor:
    """What the MLP of a layer adds, before a norm that may follow; normed [S, T, H]"""
    names = ["mlp.gate_up_proj"] if shape.joined_modules else ["mlp.gate_proj", "mlp.up_proj"]
    gate, up = _parts(shape, weights, layer, names, normed)
    active = F.silu(gate) if shape.activation == "silu" else F.gelu(gate, approximate="tanh")
    return _linear(weights, f"{layer_name(layer)}.mlp.down_proj", active * up)


def _parts(shape: DecoderShape, weights: Mapping[str, Tensor], layer: int, names: list[str], x: Tensor) -> list[Tensor]:
    """The parts of the outputs of modules that read x."""
    parts: list[Tensor] = []
    for name in names:
        parts += torch.split(_linear(weights, f"{layer_name(layer)}.{name}", x), list(shape.parts()[name]), -1)
    return parts


def _linear(weights: Mapping[str, Tensor], module: str, x: Tensor) -> Tensor:
    y, bias = x @ weights[module].T, weights.get(f"{module}.bias")
    return y if bias is None else y + bias


def _norm(shape: DecoderShape, weights: Mapping[str, Tensor], x: Tensor, module: str) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape.rms_norm_eps) * weights[module]


def _limited(z: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(z / cap) if cap else z


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """Rotary positions in the half-split form (arXiv:2104.09864); x [S, heads, T, D], rope [S, 1, T, D / 2] each"""
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
