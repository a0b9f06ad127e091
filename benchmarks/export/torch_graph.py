"""Write the graph that torch.onnx.export makes of transformers' model, float32, with its cache as inputs and outputs.

Run by the peers' interpreter; argv is a checkpoint's folder and the graph's path. The names are those of the other graphs.
"""

# K key/value heads, D head size

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import torch

_PAST, _LENGTH = 3, 2  # of the example


class WithCache(torch.nn.Module):
    """The model as a function of tokens, mask and the cache's tensors."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.transformers: Any = import_module("transformers")
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor) -> Any:
        cache = self.transformers.DynamicCache(config=self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        present = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return out.logits, *present


def main() -> None:
    checkpoint, output = sys.argv[1:]
    warnings.simplefilter("ignore")
    model = WithCache(checkpoint)
    config = model.model.config
    cache = [
        torch.zeros(1, config.num_key_value_heads, _PAST, config.head_dim) for _ in range(2 * config.num_hidden_layers)
    ]
    names = [f"{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        torch.onnx.export(
            model,
            (torch.ones(1, _LENGTH, dtype=torch.int64), torch.ones(1, _PAST + _LENGTH, dtype=torch.int64), *cache),
            output,
            input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=({1: free}, {1: free}, tuple({2: free} for _ in cache)),
            dynamo=True,
            external_data=True,
        )


if __name__ == "__main__":
    main()
