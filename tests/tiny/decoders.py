"""Tiny random decoders as transformers itself saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.tiny.tokenizer import byte_tokenizer


def save_decoder(config: PretrainedConfig, directory: Path, *, seed: int = 0, norm_offset: float = 0.0) -> None:
    """A checkpoint of `config` with a tokenizer; every weight is large enough to count.

    Norms multiply by weight + `norm_offset`.
    """
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if tensor.endswith(".bias"):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 - norm_offset + 0.2 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
    model.save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
