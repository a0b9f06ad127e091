"""PEFT's adapter directory, read and written: adapter_config.json and adapter_model.safetensors.

What fedlora does not interpret (other configuration keys, `modules_to_save`, the stored dtype) is kept, so that what was
read is written back equal. What would change the adapter's meaning unread (DoRA, biases, other methods) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError, TensorFileError
from fedlora.files.atomic import whole_directory
from fedlora.files.documents import read_object
from fedlora.files.tensor_file import Dtype, TensorFile, from_float32, write_in_order
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.peft.patterns import by_module, untargeted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 4 << 20
_MAX_WEIGHTS_BYTES = 8 << 30  # a file with holes takes no room on the disk, and all of it in memory
_MAX_NAME = 512
_BASE_KEY = "fedlora_base"  # in the safetensors metadata: PEFT ignores it
_PREFIX = "base_model.model."
_DECODER_LAYERS = "model.layers."
_FACTOR = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.(?P<factor>lora_[AB])\.weight")
_REFUSED = {
    "use_dora": "DoRA", "lora_bias": "LoRA biases", "use_qalora": "QA-LoRA", "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA", "arrow_config": "Arrow", "kasa_config": "KaSA", "use_bdlora": "BD-LoRA",
    "bdlora_config": "BD-LoRA", "velora_config": "VeLoRA", "trainable_token_indices": "trainable tokens",
    "monteclora_config": "MonteCLoRA", "target_parameters": "LoRA on parameters that are no linear module's",
}  # fmt: skip
_REFUSED_TENSORS = {"lora_embedding_A": "LoRA on an embedding", "lora_magnitude_vector": "DoRA"}
# Every other initialization (PiSSA, OLoRA, CorDA, LoftQ, ...) changes the base too: the adapter alone is not the update.
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def saved_name(module: str) -> str:
    """The tensor of a module of `modules_to_save`."""
    return f"{_PREFIX}{module}.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftDirectory:
    """What a PEFT directory holds."""

    adapter: Adapter
    base_fingerprint: str | None = None  # of the base pack it was trained on; None where PEFT itself wrote it
    dtype: Dtype = "F32"  # of the stored factors
    config: Mapping[str, Any] = field(default_factory=dict)  # adapter_config.json as it was
    saved_modules: Mapping[str, tuple[Dtype, NDArray[Any]]] = field(default_factory=dict)  # of `modules_to_save`


def read_peft(directory: str | Path) -> PeftDirectory:
    """Read an adapter. Raises AdapterError, naming the file and what is wrong, unless it is sound and plain LoRA."""
    directory = Path(directory)
    config = _read_config(directory / CONFIG)
    path = directory / WEIGHTS
    if path.is_file() and path.stat().st_size > _MAX_WEIGHTS_BYTES:
        raise AdapterError(f"{path}: {path.stat().st_size} bytes; an adapter of at most {_MAX_WEIGHTS_BYTES} is read")
    try:
        file = TensorFile(path, in_memory=True)
        factors, saved, dtypes = _tensors(file, config)
    except TensorFileError as error:
        raise AdapterError(str(error)) from None
    if not factors or len(dtypes) != 1:
        raise AdapterError(
            f"{path}: expected lora_A and lora_B of one dtype, got {', '.join(sorted(dtypes)) or 'none'}"
        )
    pairs = {}
    for module, by_name in factors.items():
        if by_name.keys() != {"lora_A", "lora_B"}:
            raise AdapterError(f"{path}: {module} has {', '.join(by_name)} only; expected lora_A and lora_B")
        try:
            pairs[module] = LoraPair(by_name["lora_A"], by_name["lora_B"])
        except AdapterError as error:
            raise AdapterError(f"{path}: {module}: {error}") from None
    try:
        idle = untargeted(config, pairs)
        if idle:
            raise AdapterError(
                f"{WEIGHTS} has factors of {idle[0]}, which {CONFIG} does not target: PEFT would not load them; "
                "save the adapter again with PEFT"
            )
        adapter = Adapter(_lora_config(config, list(pairs)), pairs)
    except (AdapterError, ConfigError) as error:
        raise AdapterError(f"{directory}: {error}") from None
    adapter.check_finite(str(path))
    base = file.metadata.get(_BASE_KEY)
    if base is not None and not re.fullmatch(r"[0-9a-f]{64}", base):
        raise AdapterError(f"{path}: {_BASE_KEY} is {base!r:.80}; expected the 64 hexadecimal digits of a fingerprint")
    return PeftDirectory(
        adapter=adapter,
        base_fingerprint=base,
        dtype=cast(Dtype, dtypes.pop()),
        config=config,
        saved_modules=saved,
    )


def write_peft(
    directory: str | Path, content: PeftDirectory, *, base_name: str | None = None, texts: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:  # fmt: skip
    """Write an adapter so that PEFT, and `read_peft`, read it back equal. The directory appears whole or not at all.

    `texts` are further files, {name: content}; `replace` another adapter that is there. Raises ConfigError.
    """
    adapter = content.adapter
    config = _config_to_write(content, base_name)
    arrays = dict(_named_factors(adapter, content.dtype)) | dict(content.saved_modules)
    metadata = {"format": "pt"}
    if content.base_fingerprint:
        metadata[_BASE_KEY] = content.base_fingerprint

    with whole_directory(Path(directory), replace=CONFIG if replace else None) as aside:
        for name, text in (texts or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        (aside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        # Not by the safetensors library: an adapter has a digest, and two entries of metadata have no order there.
        write_in_order(aside / WEIGHTS, arrays, metadata)


def _named_factors(adapter: Adapter, dtype: Dtype) -> Iterator[tuple[str, tuple[Dtype, NDArray[Any]]]]:
    for module, pair in adapter.pairs.items():
        yield f"{_PREFIX}{module}.lora_A.weight", (dtype, from_float32(pair.lora_A, dtype))
        yield f"{_PREFIX}{module}.lora_B.weight", (dtype, from_float32(pair.lora_B, dtype))


def _tensors(
    file: TensorFile, config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, NDArray[np.float32]]], dict[str, tuple[Dtype, NDArray[Any]]], set[str]]:
    saved_names = config.get("modules_to_save") or []
    if not isinstance(saved_names, list) or not all(isinstance(name, str) and name for name in saved_names):
        raise AdapterError(
            f"{file.path.parent / CONFIG}: modules_to_save must be a list of names, got {saved_names!r:.80}"
        )
    for name in file.entries:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise AdapterError(f"{file.path}: a tensor is named {name!r:.80}; expected the name of a module's tensor")
        for part in _REFUSED_TENSORS.keys() & set(name.split(".")):
            raise AdapterError(f"{file.path}: tensor {name} is {_REFUSED_TENSORS[part]}, which is not supported")
    factors: dict[str, dict[str, NDArray[np.float32]]] = {}
    saved: dict[str, tuple[Dtype, NDArray[Any]]] = {}
    dtypes = set()
    for name, entry in file.entries.items():
        match = _FACTOR.fullmatch(name)
        if match and not {"base_layer", "original_module", "modules_to_save"} & set(match["module"].split(".")):
            factors.setdefault(match["module"], {})[match["factor"]] = file.float32(name).copy()
            dtypes.add(entry.dtype)
        # PEFT saves every module whose name ends so: `classifier` is DistilBERT's pre_classifier too.
        elif name.startswith(_PREFIX) and any(part.endswith(tuple(saved_names)) for part in name.split(".")):
            saved[name] = (cast(Dtype, entry.dtype), file.array(name).copy())
        else:
            raise AdapterError(
                f"{file.path}: tensor {name} is neither lora_A or lora_B of a target module nor part of modules_to_save "
                f"({', '.join(saved_names) or 'none'}); the file is malformed: save the adapter again with PEFT"
            )
    return factors, saved, dtypes


def _read_config(path: Path) -> dict[str, Any]:
    if path.exists() and (not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES):
        raise AdapterError(
            f"{path}: expected a file of at most {_MAX_CONFIG_BYTES} bytes; save the adapter again with PEFT"
        )
    config = read_object(path, AdapterError, f"a PEFT directory with {CONFIG} and {WEIGHTS}")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {config.get('peft_type')!r:.80}; only 'LORA' is supported")
    for key, method in _REFUSED.items():
        if config.get(key):
            raise AdapterError(f"{path}: {key} is set; {method} is not supported")
    if config.get("init_lora_weights", True) not in _PLAIN_INITIALIZATIONS:
        raise AdapterError(
            f"{path}: init_lora_weights is {config['init_lora_weights']!r:.80}, which changes the base as well; "
            "convert the adapter to plain LoRA with PEFT (path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {config['bias']!r:.80}; only 'none' is supported")
    return config


def _lora_config(config: Mapping[str, Any], modules: list[str]) -> LoraConfig:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(pattern, dict):
            raise ConfigError(f"{name} must be an object, got {pattern!r:.80}")
    try:
        return LoraConfig(
            rank=config["r"],
            alpha=config["lora_alpha"],
            use_rslora=config.get("use_rslora") or False,
            target_modules=tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules)),
            rank_pattern=by_module(ranks, modules),
            alpha_pattern=by_module(alphas, modules),
        )
    except KeyError as error:
        raise AdapterError(f"{CONFIG}: {error.args[0]} is missing") from None


def _config_to_write(content: PeftDirectory, base_name: str | None) -> dict[str, Any]:
    """adapter_config.json as it was read, unless the adapter is no longer the one that it describes."""
    adapter, fresh = content.adapter, _config_of(content.adapter, base_name)
    if content.saved_modules:
        fresh["modules_to_save"] = sorted(
            {name.removesuffix(".weight").rsplit(".", 1)[-1] for name in content.saved_modules}
        )
    if not content.config:
        return fresh
    described = _lora_config(content.config, list(adapter.pairs))
    mine = (adapter.config.use_rslora, {m: (p.rank, adapter.config.scaling_of(m)) for m, p in adapter.pairs.items()})
    theirs = (described.use_rslora, {m: (described.rank_of(m), described.scaling_of(m)) for m in adapter.pairs})
    if mine == theirs:
        return dict(content.config)
    changed = ("r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")
    return {**content.config, **{key: fresh[key] for key in changed}}


def _config_of(adapter: Adapter, base_name: str | None) -> dict[str, Any]:
    config = adapter.config
    is_decoder = all(module.startswith(_DECODER_LAYERS) for module in adapter.pairs)
    # An encoder's `dense` is a name in its head too: what stands within the layer tells them apart.
    within = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", module) for module in adapter.pairs)
    return {
        "peft_type": "LORA",
        # An encoder's has none: PEFT would want the head beside it, which did not train.
        "task_type": "CAUSAL_LM" if is_decoder else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.use_rslora,
        "target_modules": list(config.target_modules) if is_decoder else list(within),
        # A name is a regular expression to PEFT: its dots are escaped to mean themselves.
        "rank_pattern": {re.escape(module): rank for module, rank in config.rank_pattern.items()},
        "alpha_pattern": {re.escape(module): alpha for module, alpha in config.alpha_pattern.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def adapter_of(directory: str | Path, base: BasePack | None) -> tuple[Adapter, str]:
    """(the adapter of a PEFT directory, the fingerprint of its base)

    `base` is needed where the adapter does not record its own, and checks names and shapes. Raises AdapterError for what is
    not plain LoRA, and AdapterMismatchError for what cannot be expressed by A and B, or what is for another base.
    """
    content = read_peft(directory)
    if content.saved_modules:
        raise AdapterMismatchError(
            f"{directory}: also replaces {', '.join(sorted(content.saved_modules))} (modules_to_save), which an adapter "
            "file cannot carry, nor can a merged base or a service; save an adapter of A and B only"
        )
    return content.adapter, _base_of(content, base, _named(Path(directory), content))


def _base_of(content: PeftDirectory, base: BasePack | None, where: str) -> str:
    """The fingerprint of the base that the adapter is for."""
    recorded = content.base_fingerprint
    if base is None:
        if recorded is None:
            raise AdapterMismatchError(
                f"{where}: does not record its base, as PEFT's own files do not; pass --base PACK"
            )
        return recorded
    content.adapter.check_fits(base.model.linear_modules(), where)
    if recorded not in (None, base.fingerprint):
        raise AdapterMismatchError(
            f"{where}: trained on base {recorded[:16]}, but {base.directory} is {base.fingerprint[:16]}; use its own base"
        )
    return base.fingerprint


def _named(directory: Path, content: PeftDirectory) -> str:
    """The directory, and the model that its configuration names where its writer did not know bases."""
    model = content.config.get("base_model_name_or_path")
    if content.base_fingerprint or not isinstance(model, str) or not model.isprintable():
        return str(directory)
    return f"{directory} (made for {model[:80]})"
