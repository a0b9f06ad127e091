"""Checkpoints that are quantized already, known by their configuration, by files beside it, or by their tensors.

A base pack is quantized from floats; what another method has rounded cannot be told apart from it any more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import CheckpointError
from fedlora.files.tensor_file import TensorEntry

Config = Mapping[str, Any]  # a config.json

# quant_method in config.json: what people call it.
_METHODS = {
    "bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FBGEMM FP8", "hqq": "HQQ",
    "compressed-tensors": "compressed-tensors", "compressed_tensors": "compressed-tensors", "mxfp4": "MXFP4",
    "mxfp8": "MXFP8", "nvfp4": "NVFP4", "torchao": "torchao", "aqlm": "AQLM", "vptq": "VPTQ", "quanto": "Quanto",
    "eetq": "EETQ", "higgs": "HIGGS", "gguf": "GGUF", "bitnet": "BitNet", "spqr": "SpQR", "quark": "Quark",
    "fp_quant": "FP-Quant", "auto-round": "AutoRound", "modelopt": "ModelOpt", "exl2": "EXL2", "exl3": "EXL3",
    "sinq": "SINQ", "metal": "Metal", "mlx": "MLX",
}  # fmt: skip
# Files that tools wrote beside config.json before, or instead of, quantization_config.
_FILES = {
    "quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt", "qmodel.pt": "HQQ",
}  # fmt: skip
# What only the tensors of one method are called, or typed.
_TENSORS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"\.(absmax|quant_map|nested_absmax|quant_state\..*)$", "bitsandbytes, 4 bits"),
        (r"\.(SCB|weight_format)$", "bitsandbytes, 8 bits"),
        (r"\.(g_idx)$", "GPTQ"),
        (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
        (r"\.(q_weight|q_scale|trellis)$", "EXL2 or EXL3"),
        (r"\.weight_packed$", "compressed-tensors"),
        (r"\.(W_q|W_q\.meta)$", "HQQ"),
        (r"_blocks$", "MXFP4"),
        (r"\.weight_scale(_inv|_2)?$", "FP8 or int8 with scales"),
        (r"\.codebooks$", "AQLM"),
    )
)
_DTYPES = {
    "F8_E4M3": "FP8", "F8_E5M2": "FP8", "U32": "packed integers, as MLX writes them", "I32": "packed integers",
    "U8": "integers of 8 bits", "I8": "integers of 8 bits",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # of a model on the hub
_MAX_CARD_BYTES = 1 << 16


def refuse_quantized(directory: Path, config: Config) -> None:
    """Raise CheckpointError where `config`, or a file of the checkpoint `directory`, says that it is quantized already."""
    method = _configured(config)
    if method is None:
        beside = [name for name in _FILES if (directory / name).is_file()]
        method = f"{_FILES[beside[0]]} ({beside[0]} says so)" if beside else None
    if method is not None:
        raise quantized_error(directory, method, config)


def quantized_error(directory: Path, method: str, config: Config) -> CheckpointError:
    """What is said of a checkpoint that `method` has quantized."""
    made_from = _made_from(directory, config)
    return CheckpointError(
        f"{directory}: quantized already, with {method}; fedlora quantizes floats: pack the unquantized checkpoint that it "
        f"was made from{f' ({made_from})' if made_from else ''}"
    )


def quantized_by(entries: Collection[TensorEntry]) -> str | None:
    """The method that the tensors of a checkpoint show; None where they show none."""
    matrices = [entry for entry in entries if len(entry.shape) == 2]
    names = [entry.name for entry in entries]
    for pattern, method in _TENSORS:
        if any(pattern.search(name) for name in names):
            return method
    typed = [entry for entry in matrices if entry.dtype in _DTYPES and entry.name.endswith(".weight")]
    return f"{_DTYPES[typed[0].dtype]} ({typed[0].name} is {typed[0].dtype})" if typed else None


def _configured(config: Config) -> str | None:
    """The method that config.json names, with its bits where it says them."""
    told = config.get("quantization_config") or config.get("compression_config")
    if not told and isinstance(config.get("quantization"), Mapping) and config["quantization"]:
        return f"MLX{_bits(config['quantization'])}"
    if not told:
        return None
    if not isinstance(told, Mapping):
        return "a method that quantization_config does not name"
    method = told.get("quant_method")
    if "compression_config" in config and not method:
        method = "compressed-tensors"
    if not method and any(key.startswith(("load_in_", "_load_in_", "bnb_")) for key in map(str, told)):
        method = "bitsandbytes"
    if not isinstance(method, str):
        return "a method that quantization_config does not name"
    return f"{_METHODS.get(method.lower(), method[:40])}{_bits(told)}"


def _bits(told: Mapping[str, Any]) -> str:
    if told.get("load_in_4bit") or told.get("_load_in_4bit"):
        return ", 4 bits"
    if told.get("load_in_8bit") or told.get("_load_in_8bit"):
        return ", 8 bits"
    bits = told.get("bits", told.get("w_bit", told.get("nbits")))
    return f", {bits} bits" if type(bits) is int and 0 < bits < 64 else ""


def _made_from(directory: Path, config: Config) -> str:
    """The model that it was made from, where its card or its configuration names one."""
    named = [*_base_models(directory / "README.md"), config.get("base_model"), config.get("_name_or_path")]
    named = [name for name in named if isinstance(name, str) and _NAME.fullmatch(name)]
    return str(named[0])[:100] if named else ""


def _base_models(card: Path) -> list[str]:
    """`base_model` of a model card: the front of README.md, a line or a list."""
    try:
        if not card.is_file():
            return []
        with card.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_CARD_BYTES).splitlines()
    except OSError:
        return []
    if not lines or lines[0].strip() != "---":
        return []
    found: list[str] = []
    listed = False
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, separator, value = line.partition(":")
        if separator and not line.startswith((" ", "-")):
            listed = key == "base_model"
            found += [value.strip(" '\"")] if listed else []
        elif listed and line.strip().startswith("-"):
            found.append(line.strip().strip("- '\""))
    return [name for name in found if name]
