"""Greedy tokens after a prompt: torch's, and those of onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.reference import logits as torch_logits

from tests.tiny.adapters import random_adapter
from tests.tiny.tokenizer import BOS
from tests.tiny.tokens import random_tokens

NEW_TOKENS = 12


def torch_tokens(base: BasePack, prompt: Sequence[int], adapter: Adapter | None = None) -> list[int]:
    """The greedy tokens after a prompt, each found by reading all that stands before it again."""
    tokens, ends = list(prompt), {*base.shape.eos_token_ids, base.shape.bos_token_id}
    while len(tokens) < len(prompt) + NEW_TOKENS and not ends & set(tokens[len(prompt) :]):
        tokens.append(int(torch_logits(base, np.array([tokens]), adapter)[0, -1].argmax()))
    return tokens[len(prompt) :]


def ranks_8_and_16(base: BasePack) -> dict[str, Adapter]:
    """Two adapters on every linear module."""
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in base.shape.linear_modules()))
    configs = {f"rank-{rank}": LoraConfig(rank=rank, alpha=2.0 * rank, target_modules=leaves) for rank in (8, 16)}
    return {name: random_adapter(base, config, seed=config.rank) for name, config in configs.items()}


def generator_of(og: Any, model: Any, length: int, **options: Any) -> Any:
    """A generator of at most `length` tokens."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length, **options)
    return og.Generator(model, params)


def rest_of(generator: Any) -> list[int]:
    """The tokens that a generator for one sequence still gives."""
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def prompt_of(base: BasePack, length: int = 7) -> list[int]:
    """Random tokens, none of which is special."""
    return [int(token) % BOS for token in random_tokens(base, 1, length)[0]]
