"""A Llama-family decoder over a packed base, with LoRA on any of its linear modules."""

# S sequences, T tokens of each, N = S T rows, H hidden size, V vocabulary
# Q query heads, K key/value heads, G = Q / K, D head size

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fedlora.family import EMBEDDING, FINAL_NORM, HEAD, layer_name
from fedlora.pack import BasePack
from torch import Tensor

from fedlora_client.lora import LoraTensors, lora_delta
from fedlora_client.packed import PackedMatrix, frozen_linear


class Decoder:
    """The frozen base. It has no state but the mapped weights: any number of threads may share one."""

    def __init__(self, base: BasePack) -> None:
        self.base = base
        self.shape = base.shape
        modules = base.shape.linear_modules() | base.shape.vocabulary_modules()
        self._matrices = {module: PackedMatrix.view(base.matrix(module)) for module in modules}
        self._norms = {module: torch.from_numpy(base.norm(module)) for module in base.shape.norm_modules()}
        self._cos, self._sin = map(torch.from_numpy, base.shape.rotary_table())

    def logits(
        self,
        tokens: Tensor,  # int64 [S, T]
        lora: LoraTensors | None = None,
    ) -> Tensor:  # float32 [S, T, V]
        """The scores of each next token. T is at most the base's `max_positions`."""
        batch, length = tokens.shape
        x = self._matrices[EMBEDDING].dequantized(tokens.flatten())
        for layer in range(self.shape.num_layers):
            prefix = layer_name(layer)
            x = x + self._attention(self._norm(x, f"{prefix}.input_layernorm"), prefix, lora, batch, length)
            x = x + self._mlp(self._norm(x, f"{prefix}.post_attention_layernorm"), prefix, lora)
        head = EMBEDDING if self.shape.tie_word_embeddings else HEAD
        return frozen_linear(self._norm(x, FINAL_NORM), self._matrices[head]).view(batch, length, -1)

    def _linear(self, x: Tensor, module: str, lora: LoraTensors | None) -> Tensor:
        y = frozen_linear(x, self._matrices[module])
        factors = lora.modules.get(module) if lora else None
        return y if factors is None else y + lora_delta(x, factors)

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.shape.rms_norm_eps) * self._norms[module]

    def _attention(self, x: Tensor, prefix: str, lora: LoraTensors | None, batch: int, length: int) -> Tensor:
        """softmax(q k^T / sqrt(D) + causal mask) v, with rotary positions on q and k; x [N, H] -> [N, H]."""
        kv_heads, size = self.shape.num_kv_heads, self.shape.head_dim
        groups = self.shape.num_heads // kv_heads
        q, k, v = (self._linear(x, f"{prefix}.self_attn.{name}", lora) for name in ("q_proj", "k_proj", "v_proj"))
        q = self._rotated(q.view(batch, length, kv_heads * groups, size).transpose(1, 2))  # [S, Q, T, D]
        k = self._rotated(k.view(batch, length, kv_heads, size).transpose(1, 2))  # [S, K, T, D]
        v = v.view(batch, length, kv_heads, size).transpose(1, 2)  # [S, K, T, D]
        # The G query heads that share a key head are one longer matrix: keys and values are never copied.
        q = q.reshape(batch, kv_heads, groups * length, size)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(size)).view(batch, kv_heads, groups, length, length)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1).view(batch, kv_heads, groups * length, length)
        mixed = (weights @ v).view(batch, kv_heads * groups, length, size).transpose(1, 2).reshape(batch * length, -1)
        return self._linear(mixed, f"{prefix}.self_attn.o_proj", lora)

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary positions in the half-split form (Su et al., arXiv:2104.09864); x [S, heads, T, D]."""
        cos, sin = self._cos[: x.shape[2]], self._sin[: x.shape[2]]  # [T, D / 2]
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def _mlp(self, x: Tensor, prefix: str, lora: LoraTensors | None) -> Tensor:
        gate = self._linear(x, f"{prefix}.mlp.gate_proj", lora)
        up = self._linear(x, f"{prefix}.mlp.up_proj", lora)
        return self._linear(F.silu(gate) * up, f"{prefix}.mlp.down_proj", lora)
