"""adapter_config.json, read and written: what PEFT says of an adapter beside its tensors.

What would change the adapter's meaning unread (DoRA, biases, other methods) is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedlora.errors import AdapterError, ConfigError
from fedlora.files.documents import read_object
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import BY_NAME, Kind, adapted_modules, kind_of
from fedlora.lora.layers import layers_of
from fedlora.peft.layout import CONFIG, HEADS, WEIGHTS, head_part, saved_parts
from fedlora.peft.patterns import by_module

MAX_CONFIG_BYTES = 4 << 20
_MAX_SAVED_NAMES = 1024  # of modules_to_save: each is looked for in the name of each tensor
_DECODER_LAYERS = "model.layers."
_REFUSED = {
    "lora_bias": "LoRA biases", "use_qalora": "QA-LoRA", "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA", "arrow_config": "Arrow", "kasa_config": "KaSA", "use_bdlora": "BD-LoRA",
    "bdlora_config": "BD-LoRA", "velora_config": "VeLoRA", "trainable_token_indices": "trainable tokens",
    "monteclora_config": "MonteCLoRA", "target_parameters": "LoRA on parameters that are no linear module's",
}  # fmt: skip
# Every other initialization (PiSSA, OLoRA, CorDA, LoftQ, ...) changes the base too: the adapter alone is not the update.
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_ENCODER_CLASSES = {
    "bert": "BertForSequenceClassification", "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
}  # fmt: skip
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")  # what PEFT can save as plain LoRA for the base as it was
_KNOWN_TYPES = tuple(dict.fromkeys(kind.peft_type for kind in BY_NAME.values()))
# Of other types, those that PEFT 0.21 makes LoRA of (`supports_lora_conversion`).
_CONVERTIBLE_TYPES = frozenset(
    {
        "C3A", "DELORA", "FOURIERFT", "GRALORA", "LOHA", "LOKR", "MISS", "PSOFT", "RANDLORA", "TINYLORA", "UNILORA",
        "VBLORA", "WAVEFT",
    }
)  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in `path`, of a kind that fedlora knows. Raises AdapterError, naming what it is not."""
    expected = f"a PEFT directory with {CONFIG} and {WEIGHTS}"
    config = read_object(path, AdapterError, expected, max_bytes=MAX_CONFIG_BYTES)
    if (found := config.get("peft_type")) not in _KNOWN_TYPES:
        raise AdapterError(
            f"{path}: peft_type is {found!r:.80}, which is not supported; expected {', '.join(_KNOWN_TYPES)}; "
            f"{_what_to_do(found)}"
        )
    for key, method in _REFUSED.items():
        if config.get(key):
            raise AdapterError(f"{path}: {key} is set; {method} is not supported: train without it")
    _check_initialization(config.get("init_lora_weights", True), path)
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {config['bias']!r:.80}; only 'none' is supported: train without biases")
    return config


def kind_in(config: Mapping[str, Any]) -> Kind:
    """The kind that a configuration is of."""
    return next(kind for kind in BY_NAME.values() if kind.reads(config))


def check_plain(kind: Kind, path: Path) -> None:
    """Raise AdapterError where an adapter is of another kind than LoRA, for those who cannot compute with it."""
    if kind.name != "lora":
        merge = "" if kind.is_virtual else "merge it into its base (fedlora export BASE --merge ADAPTER -o DIR), or "
        raise AdapterError(
            f"{path}: {kind.peft_mark}: {kind.title} is trained and evaluated in torch, and this takes plain LoRA; "
            f"{merge}train with lora.method = lora"
        )


def adapter_config(
    config: Mapping[str, Any], kind: Kind, modules: Iterable[str], own: Extras
) -> LoraConfig:  # `modules` have factors, `own` are the kind's tensors
    """The configuration of an adapter of any kind. Raises AdapterError, ConfigError."""
    return replace(lora_config(config, modules), method=kind.name) if kind.has_factors else kind.config_of(config, own)


def saved_module_names(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The names of `modules_to_save`. Raises AdapterError."""
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise AdapterError(f"{where}: modules_to_save must be a list of names, got {names!r:.80}")
    if len(names) > _MAX_SAVED_NAMES:
        raise AdapterError(
            f"{where}: modules_to_save has {len(names)} names; at most {_MAX_SAVED_NAMES} are read: take out what names no "
            "module"
        )
    return tuple(names)


def lora_config(config: Mapping[str, Any], modules: Iterable[str]) -> LoraConfig:
    """How large the updates of `modules` are. Raises AdapterError, ConfigError."""
    modules = list(modules)
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
            layers=layers_of(modules) if config.get("layers_to_transform") not in (None, []) else (),
        )
    except KeyError as error:
        raise AdapterError(
            f"{CONFIG}: {error.args[0]} is missing; expected it in a configuration that PEFT wrote"
        ) from None


def config_to_write(
    adapter: Adapter, read: Mapping[str, Any], saved: Iterable[str], base_name: str | None
) -> dict[str, Any]:
    """The configuration as it was `read`, unless the adapter is no longer the one that it describes.

    `saved` are the tensors of `modules_to_save`, by their names in the model.
    """
    kind, saved = kind_of(adapter), list(saved)
    fresh = fresh_config(adapter.config, adapted_modules(adapter), base_name, extras=adapter.extras)
    if parts := saved_parts(saved):
        fresh["modules_to_save"] = parts
    if kind.name != "lora":
        kept = {key: value for key, value in read.items() if key in ("peft_version", "revision", *kind.kept_keys)}
        return {**kept, **kind.peft_config(adapter, fresh)}
    if not read:
        return fresh
    if not all(any(part.endswith(tuple(read.get("modules_to_save") or ())) for part in n.split(".")) for n in saved):
        read = {**read, **{key: fresh[key] for key in ("modules_to_save", "task_type")}}
    described = lora_config(read, adapter.pairs)
    mine = (adapter.config.use_rslora, {m: (p.rank, adapter.config.scaling_of(m)) for m, p in adapter.pairs.items()})
    theirs = (described.use_rslora, {m: (described.rank_of(m), described.scaling_of(m)) for m in adapter.pairs})
    if mine == theirs:
        return dict(read)
    changed = (
        "r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern",
    )  # fmt: skip
    return {**read, **{key: fresh[key] for key in changed if key in fresh}}


def fresh_config(
    config: LoraConfig, modules: Collection[str], base_name: str | None, *, extras: Iterable[str] = ()
) -> dict[str, Any]:
    """The configuration of an adapter of these modules, and extra tensors, that nobody has written yet."""
    is_decoder = all(module.startswith(_DECODER_LAYERS) for module in modules)
    # An encoder's `dense` is a name in its head too: what stands within the layer tells them apart.
    within = dict.fromkeys(map(_within_layer, modules))
    targets = list(config.target_modules) if is_decoder else list(within)
    is_regular = len(modules) == len(within) * max(1, len(layers_of(modules)))
    return {
        "peft_type": "LORA",
        **({"task_type": "CAUSAL_LM"} if is_decoder else _encoder_task(modules, extras)),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.use_rslora,
        # In full where layers have different ones: by the last parts PEFT would make factors that no file holds.
        "target_modules": targets if is_regular else list(modules),
        **({"layers_to_transform": list(layers_of(modules))} if config.layers and is_regular else {}),
        # A name is a regular expression to PEFT: its dots are escaped to mean themselves.
        "rank_pattern": {re.escape(module): rank for module, rank in config.rank_pattern.items()},
        "alpha_pattern": {re.escape(module): alpha for module, alpha in config.alpha_pattern.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _what_to_do(peft_type: object) -> str:
    """With an adapter of another type: PEFT can make LoRA of some."""
    if isinstance(peft_type, str) and peft_type in _CONVERTIBLE_TYPES:
        return "PEFT can make LoRA of it: load it with PEFT and call peft.save_as_lora(DIR, model, rank=RANK)"
    return "PEFT cannot make LoRA of it: train an adapter with PEFT's LoraConfig"


def _within_layer(module: str) -> str:
    return re.sub(r"^.*?\.\d+\.", "", module)


def _encoder_task(modules: Iterable[str], extras: Iterable[str]) -> dict[str, Any]:
    """What tells PEFT's AutoPeftModel classes the model; task type SEQ_CLS wants a head beside A and B."""
    if any(head_part(tensor).endswith(HEADS) for tensor in extras):
        return {"task_type": "SEQ_CLS"}
    prefix = next((module.split(".", 1)[0] for module in modules), "")
    if prefix in _ENCODER_CLASSES:
        library = f"transformers.models.{prefix}.modeling_{prefix}"
        return {
            "task_type": None,
            "auto_mapping": {"base_model_class": _ENCODER_CLASSES[prefix], "parent_library": library},
        }
    return {"task_type": "FEATURE_EXTRACTION"}  # a bare encoder, whose names have no prefix


def _check_initialization(how: object, path: Path) -> None:
    if how in _PLAIN_INITIALIZATIONS:
        return
    remedy = "train with another init_lora_weights"
    if isinstance(how, str) and how.lower().startswith(_CONVERTIBLE):
        remedy = (
            "have PEFT convert it: model.save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL), where "
            "INITIAL is the adapter as it was saved before the training"
        )
    raise AdapterError(f"{path}: init_lora_weights is {how!r:.80}, which changes the base as well; {remedy}")
