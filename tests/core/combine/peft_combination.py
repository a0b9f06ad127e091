"""PEFT's own `add_weighted_adapter` on adapters that lie in directories: the oracle of `fedlora combine`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from fedlora.combine.merging import dropped
from peft.utils import merge_utils

from tests.tiny.checkpoints import LLAMA

COMBINED = "combined"


@contextmanager
def quietly() -> Iterator[None]:
    """Without PEFT's warnings: of a density of 1, and of names that transformers will rename."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model_with(directories: Sequence[Path]) -> Any:
    """PEFT's model with the adapters 0, 1, ... loaded."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    with quietly():
        loaded = peft.PeftModel.from_pretrained(model, str(directories[0]), adapter_name="0")
        for place, directory in enumerate(directories[1:], 1):
            loaded.load_adapter(str(directory), adapter_name=str(place))
    return loaded.eval()


def combined_by_peft(
    directories: Sequence[Path], weights: Sequence[float], how: str, *, density: float | None = None, seed: int = 0,
    **options: Any,
) -> Any:  # fmt: skip
    """The model with the adapter `combined`; what dare drops is what ours would drop with `seed`."""
    model = model_with(directories)
    names = [str(place) for place in range(len(directories))]
    way = how.replace("-", "_")
    with quietly(), _our_masks(model, names, way, seed):
        model.add_weighted_adapter(names, list(weights), COMBINED, combination_type=way, density=density, **options)
    return model


def layer_of(model: Any, module: str) -> Any:
    return model.base_model.model.get_submodule(module)


@contextmanager
def _our_masks(model: Any, names: Sequence[str], way: str, seed: int) -> Iterator[None]:
    """PEFT asks for one mask after another: module by module, A of each adapter and then B, or the product of each."""
    if not way.startswith("dare"):
        yield
        return
    wanted: list[tuple[str, str, int]] = []
    for key, layer in model.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            having = [place for place, name in enumerate(names) if name in layer.lora_A]
            for what in ["product"] if way.endswith("svd") else ["A", "B"]:
                wanted += [(key, what, place) for place in having]
    left = iter(wanted)

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        module, what, place = next(left)
        name = int.from_bytes(hashlib.sha256(f"{module}.{what}".encode()).digest()[:8], "little")
        density = float(probabilities.flatten()[0])
        mask = dropped(tuple(probabilities.shape), density, np.random.default_rng([seed, name, place]))
        return torch.from_numpy(mask.astype(np.float32))

    original = merge_utils.torch.bernoulli
    merge_utils.torch.bernoulli = bernoulli
    try:
        yield
        assert next(left, None) is None, "PEFT drew fewer masks"
    finally:
        merge_utils.torch.bernoulli = original
