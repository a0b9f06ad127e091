"""The same decoder over dense weights, in plain autograd: for full fine-tuning, and the slow reference of the tests.

Any tensor may stand for a weight, so W + gamma B A makes it a LoRA model, by the definition.
"""

# S sequences, T tokens of each, H hidden size, V vocabulary, Q query heads, K key/value heads, D head size

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from fedlora.family import EMBEDDING, FINAL_NORM, HEAD, DecoderShape, layer_name
from torch import Tensor


def dense_logits(
    shape: DecoderShape,
    weights: Mapping[str, Tensor],  # {module: weight}
    tokens: Tensor,  # int64 [S, T]
    starts: Tensor,  # int64 [S, T], where the example of each position begins
) -> Tensor:  # [S, T, V]
    """The scores of each next token."""
    length = tokens.shape[1]
    cos, sin = (torch.from_numpy(table).to(tokens.device) for table in shape.rotary_table())
    positions = torch.arange(length, device=tokens.device) - starts
    turn = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)  # [S, 1, T, D / 2]
    key = torch.arange(length, device=tokens.device)
    allowed = (key >= starts[..., None]) & (key <= key[:, None])  # [S, T, T]

    def norm(x: Tensor, module: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape.rms_norm_eps) * weights[module]

    def heads(x: Tensor, module: str) -> Tensor:
        return (x @ weights[module].T).view(*tokens.shape, -1, shape.head_dim).transpose(1, 2)

    x = weights[EMBEDDING][tokens]
    for layer in range(shape.num_layers):
        prefix = layer_name(layer)
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = norm(x, f"{prefix}.input_layernorm")
        q, k = (
            _rotated(heads(normed, f"{attention}.q_proj"), turn),
            _rotated(heads(normed, f"{attention}.k_proj"), turn),
        )
        groups = shape.num_heads // shape.num_kv_heads
        k, v = (part.repeat_interleave(groups, 1) for part in (k, heads(normed, f"{attention}.v_proj")))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(shape.head_dim)).masked_fill(~allowed.unsqueeze(1), -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ weights[f"{attention}.o_proj"].T
        normed = norm(x, f"{prefix}.post_attention_layernorm")
        gated = F.silu(normed @ weights[f"{mlp}.gate_proj"].T) * (normed @ weights[f"{mlp}.up_proj"].T)
        x = x + gated @ weights[f"{mlp}.down_proj"].T
    return norm(x, FINAL_NORM) @ weights[EMBEDDING if shape.tie_word_embeddings else HEAD].T


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions in the half-split form (arXiv:2104.09864); x [S, heads, T, D]"""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
