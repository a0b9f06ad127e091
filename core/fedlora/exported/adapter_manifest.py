"""X.onnx_adapter.json: which base an adapter file is for, in full, and what it was made from.

base             the fingerprint of the base; the file itself has room for 31 bits of it
profile          of the graphs that take it (`fedlora.exported.profiles`): compat, or fast, whose inputs are joined
sha256           of the adapter file, and size_bytes
slots            {input name: [rows, columns]} of every value in the file; of a head's bias, or of what scales, [rows]; of
                 virtual tokens [1, heads, tokens, size of a head]
ranks            {module: rank}
lora             rank, alpha, use_rslora, target_modules and the patterns of the adapter; of virtual tokens their method and
                 num_virtual_tokens
scaling          a note: the file's lora_B is scaling * B already; of virtual tokens, that they are keys and values
source           what was exported, by name
method           of an adapter that scales modules: its kind, dora or ia3 (`lora.method`); `lora` is of its factors, if any
chat             where it was given: the adapter's chat template, special tokens and ends of an answer
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.data.adapter_chat import chat_from_json, chat_to_json
from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import AdapterError, ConfigError
from fedlora.exported.cache_prefix import is_of_cache
from fedlora.exported.inputs import input_names, is_of_factors, modules_of
from fedlora.exported.profiles import Profile
from fedlora.exported.sidecar import InputShapes, read_sidecar, sidecar_of
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import kind_of
from fedlora.lora.output_scale import METHODS, has_scales

FORMAT, VERSION = "fedlora-onnx-adapter", 1
SCALING = "lora_B.weight is scaling * B, transposed: nothing is left to multiply"
OF_CACHE = "keys and values of virtual tokens, with which the cache of a sequence begins"
FILE_PROFILES: tuple[Profile, ...] = ("compat", "fast")  # those with inputs of one adapter
_FIELDS = {"profile": str, "ranks": dict, "lora": dict, "scaling": str, "source": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterManifest:
    """What stands beside an adapter file."""

    base: str  # its fingerprint
    profile: Profile
    sha256: str
    size_bytes: int
    inputs: InputShapes
    ranks: Mapping[str, int]
    lora: LoraConfig
    source: str
    method: str = "lora"  # the kind that it was before it was exported
    chat: ChatSettings = field(default_factory=ChatSettings)


def adapter_manifest_text(
    adapter: Adapter,
    base_fingerprint: str,
    source: str,
    data: bytes,
    *,
    profile: Profile,
    inputs: InputShapes,
    method: str = "lora",
    chat: ChatSettings | None = None,
) -> str:
    """The manifest of a file that holds `data`, made from `adapter`: `inputs`, the inputs of the graph of `profile`."""
    lora = adapter.config
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "base": base_fingerprint,
        "profile": profile,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "source": source,
        "lora": {
            "rank": lora.rank,
            "alpha": lora.alpha,
            "use_rslora": lora.use_rslora,
            "target_modules": list(lora.target_modules),
            "rank_pattern": {module: rank for module, rank in lora.rank_pattern.items() if module in adapter.pairs},
            "alpha_pattern": {module: alpha for module, alpha in lora.alpha_pattern.items() if module in adapter.pairs},
        },
        "scaling": SCALING,
        "ranks": {module: pair.rank for module, pair in adapter.pairs.items()},
        "slots": {name: list(shape) for name, shape in inputs.items()},
    }
    if has_scales(inputs):
        manifest["method"] = method
    if kind_of(lora).is_virtual:
        told_of = {"method": lora.method, "num_virtual_tokens": lora.num_virtual_tokens}
        manifest |= {"lora": told_of, "scaling": OF_CACHE}
    told = chat_to_json(chat or ChatSettings())
    return json.dumps({**manifest, "chat": told} if told else manifest, indent=2) + "\n"


def read_adapter_manifest(adapter_file: Path) -> AdapterManifest | None:
    """The manifest beside an adapter file; None where there is none. Raises AdapterError."""
    path = sidecar_of(adapter_file)
    if not path.exists():
        return None
    values = read_sidecar(
        path, kind=FORMAT, version=VERSION, fields=_FIELDS, error=AdapterError, optional={"chat": dict, "method": str}
    )
    if values["profile"] not in FILE_PROFILES:
        expected = ", ".join(FILE_PROFILES)
        raise AdapterError(f"{path}: profile {values['profile']!r:.80}; expected {expected}: export the adapter again")
    lora = _lora(values["lora"], path)
    for module, rank in values["ranks"].items():
        if type(rank) is not int or rank != lora.rank_of(module):
            raise AdapterError(f"{path}: ranks: {module!r:.120} is {rank!r:.80}; lora says {lora.rank_of(module)}")
    _check_inputs(values["slots"], values["ranks"], path)
    method = values.get("method", "lora")
    if (method in METHODS) != has_scales(values["slots"]) or ("method" in values and method not in METHODS):
        raise AdapterError(
            f"{path}: method {method!r:.80} beside slots that {'scale' if has_scales(values['slots']) else 'do not scale'} "
            f"modules; expected {' or '.join(METHODS)} where they do, and none where not: export the adapter again"
        )
    _check_virtual(values["slots"], lora, path)
    return AdapterManifest(
        base=values["base"],
        profile=values["profile"],
        sha256=values["sha256"],
        size_bytes=values["size_bytes"],
        inputs=values["slots"],
        ranks=values["ranks"],
        lora=lora,
        source=values["source"],
        method=lora.method if kind_of(lora).is_virtual else method,
        chat=chat_from_json(values.get("chat", {}), str(path)),
    )


def _check_inputs(inputs: InputShapes, ranks: Mapping[str, int], path: Path) -> None:
    """Raise AdapterError unless the inputs are those of the modules that have ranks, alone or in groups, and as wide.

    Those of a head are for the base to know.
    """
    inputs = {name: shape for name, shape in inputs.items() if is_of_factors(name)}
    groups = {name.rsplit(".lora_", 1)[0] for name in inputs}
    widths = {group: sum(ranks.get(module, 0) for module in modules_of(group)) for group in groups}
    named = {module for group in groups for module in modules_of(group)}
    both = {name for group in groups for name in input_names(group)}
    if inputs.keys() != both or not named >= ranks.keys() or not all(widths.values()):
        raise AdapterError(f"{path}: slots and ranks do not name the same modules; export the adapter again")
    for group, width in widths.items():
        name_a, name_b = input_names(group)
        if any(len(inputs[name]) != 2 for name in (name_a, name_b)):
            raise AdapterError(
                f"{path}: slots: {group!r:.120} has {inputs[name_a]}; expected two sizes: export it again"
            )
        if (inputs[name_a][1], inputs[name_b][0]) != (width, width):
            raise AdapterError(
                f"{path}: slots: {group!r:.120} has rank {inputs[name_a][1]} and {inputs[name_b][0]}, ranks says {width}; "
                "export the adapter again"
            )


def _check_virtual(inputs: InputShapes, lora: LoraConfig, path: Path) -> None:
    """Raise AdapterError unless the slots are keys and values of as many virtual tokens as `lora` says, or none of them."""
    expected = lora.num_virtual_tokens if kind_of(lora).is_virtual else 0
    for name, shape in inputs.items():
        found = shape[2] if is_of_cache(name) and len(shape) == 4 else 0
        if found != expected:
            raise AdapterError(
                f"{path}: slots: {name!r:.120} is {list(shape)}, of {found} virtual tokens; lora says {expected}: export "
                "the adapter again"
            )


# Of a LoraConfig: what is exported is plain LoRA, and `ranks` has the modules of its layers; or it is virtual tokens.
_TOLD_VIRTUAL = {"method", "num_virtual_tokens"}
_TOLD = {"rank", "alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern"}


def _lora(values: Mapping[str, Any], path: Path) -> LoraConfig:
    if values.keys() == _TOLD_VIRTUAL:
        return _virtual(values, path)
    patterns = [values.get("rank_pattern"), values.get("alpha_pattern")]
    if (
        values.keys() != _TOLD
        or not isinstance(values["target_modules"], list)
        or not all(isinstance(pattern, dict) for pattern in patterns)
    ):
        names = ", ".join(sorted(_TOLD))
        raise AdapterError(f"{path}: lora must have {names}, got {values!r:.200}; export the adapter again")
    try:
        return LoraConfig(**{**values, "target_modules": tuple(values["target_modules"])})
    except (ConfigError, TypeError) as error:
        raise AdapterError(f"{path}: lora: {error}; export the adapter again") from None


def _virtual(values: Mapping[str, Any], path: Path) -> LoraConfig:
    try:
        lora = LoraConfig(**values)
    except (ConfigError, TypeError) as error:
        raise AdapterError(f"{path}: lora: {error}; export the adapter again") from None
    if not kind_of(lora).is_virtual:
        raise AdapterError(f"{path}: lora: method is {lora.method}; expected one with virtual tokens: export it again")
    return lora
