"""The models of transformers and of PEFT over a pack's dequantized weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.family import DecoderShape
from fedlora.lora.adapter import Adapter

Parameters = dict[str, tuple[Any, Any]]  # {module: (lora_A, lora_B)}, which train


def oracle(base: BasePack, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model, of whatever family."""
    config = transformers.AutoConfig.from_pretrained(base.directory)
    model_class = getattr(transformers, config.architectures[0])
    model = model_class._from_config(config, attn_implementation="eager", dtype=dtype)
    shape = base.model
    modules = shape.linear_modules() | shape.vocabulary_modules()
    state = {f"{module}.weight": torch.from_numpy(dequantize(base.matrix(module)).copy()) for module in modules}
    for tensor in shape.float_tensors():
        state[tensor] = torch.from_numpy(base.floats(tensor) - np.float32(shape.float_offset(tensor)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    tied = isinstance(shape, DecoderShape) and shape.tie_word_embeddings
    # An encoder's pooler is read by no embedding.
    assert all(key.startswith("pooler.") or (tied and key == "lm_head.weight") for key in missing)
    model.tie_weights()
    return model.eval()


@contextmanager
def pefts_own_warnings() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for a name that is deprecated there, and warns of VeRA without its projections."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not (save|load) vera_A", UserWarning)
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def read_by_peft(base: BasePack, directory: Path) -> Any:
    """The model of an adapter's directory as PEFT itself reads it, on the dequantized base."""
    with pefts_own_warnings():
        return peft.PeftModel.from_pretrained(oracle(base), str(directory)).eval()


def peft_oracle(base: BasePack, adapter: Adapter, dtype: torch.dtype = torch.float32) -> tuple[Any, Parameters]:
    """PEFT's decoder with the factors of `adapter`.

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
    with pefts_own_warnings():
        model = peft.get_peft_model(oracle(base, dtype), theirs)
    parameters = _given_factors(model, adapter)
    assert len(parameters) * 2 == sum(parameter.requires_grad for parameter in model.parameters())
    return model, parameters


def peft_encoder(base: BasePack, adapter: Adapter, parts: tuple[str, ...] = ()) -> tuple[Any, Parameters]:
    """PEFT's encoder with the factors of `adapter`, and with its extra tensors, which are of `parts` of the head.

    PEFT trains a classifier of its own in any case, as a copy of the base's.
    """
    config = adapter.config
    # By their full names: the leaf `dense` is a name in the head too, which gets no adapter.
    theirs = peft.LoraConfig(
        task_type="SEQ_CLS", r=config.rank, lora_alpha=config.alpha, target_modules=list(adapter.pairs),
        lora_dropout=0.0, bias="none", modules_to_save=list(parts) or None,
    )  # fmt: skip
    with pefts_own_warnings():
        model = peft.get_peft_model(oracle(base), theirs)
    trained = trained_by_peft(model)
    for name, values in adapter.extras.items():
        trained[name].data.copy_(torch.tensor(values))
    return model.eval(), _given_factors(model, adapter)


def trained_by_peft(model: Any) -> dict[str, Any]:
    """{tensor name in the model: parameter} of what PEFT trains beside factors."""
    return {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }


def _given_factors(model: Any, adapter: Adapter) -> Parameters:
    """The parameters of PEFT's `model` with the values of `adapter`."""
    parameters = {}
    for module, pair in adapter.pairs.items():
        layer = model.base_model.model.get_submodule(module)
        factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        with torch.no_grad():
            for factor, value in zip(factors, (pair.lora_A, pair.lora_B), strict=True):
                assert factor.shape == value.shape
                factor.copy_(torch.tensor(value))
        parameters[module] = factors
    return parameters
