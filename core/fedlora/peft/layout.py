"""What the files and the tensors of a PEFT directory are called."""

from __future__ import annotations

from collections.abc import Iterable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # the weights as PEFT wrote them once; reading them could run whatever they hold
HEADS = ("classifier", "score")  # what PEFT trains and saves beside A and B with task_type SEQ_CLS
_PARTS = (*HEADS, "pooler")  # of classification heads: PEFT saves every module whose name ends so
# What says how to speak with the adapter, where a training saved its tokenizer beside it.
COMPANIONS = ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
PREFIX = "base_model.model."  # of every tensor: the model stands within PEFT's own two


def factor_name(module: str, factor: str) -> str:
    """The tensor of `lora_A` or `lora_B` of a module."""
    return f"{PREFIX}{module}.{factor}.weight"


def saved_name(module: str) -> str:
    """The tensor of a module of `modules_to_save`."""
    return f"{PREFIX}{module}.weight"


def head_part(tensor: str) -> str:
    """The part of a classification head that a tensor is of, by its name in the model; empty where it is of none."""
    return next((part for part in tensor.split(".")[:-1] if part.endswith(_PARTS)), "")


def saved_parts(tensors: Iterable[str]) -> list[str]:
    """What `modules_to_save` says where these tensors, by their names in the model, were saved."""
    parts = {head_part(tensor) or tensor.split(".")[-2] for tensor in tensors}
    return sorted(part for part in parts if not any(part != other and part.endswith(other) for other in parts))
