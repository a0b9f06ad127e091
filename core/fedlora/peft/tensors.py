"""What each tensor of adapter_model.safetensors is, by its name: PEFT's own writers are what this follows.

base_model.model.MODULE.lora_A.weight           a factor; PEFT loads MODULE.lora_A.NAME.weight of its adapter NAME too
base_model.model.MODULE.weight, .bias           of a module of `modules_to_save`, trained: a classification head's are extra
                                                tensors of the adapter, all others are kept as they are
base_model.model.EMBEDDING.weight               what `save_embedding_layers` adds: as it was, or trained, or resized
base_model.model.EMBEDDING.base_layer.weight    the same, of an embedding that has LoRA itself
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError
from fedlora.files.tensor_file import Dtype, TensorFile
from fedlora.lora.adapter import Extras, LoraPair
from fedlora.lora.kinds import BY_NAME, Kind
from fedlora.peft.layout import CONFIG, HEADS, PREFIX, WEIGHTS, head_part

Stored = tuple[Dtype, NDArray[Any]]  # values as they lie in the file
_MAX_NAME = 512
_FACTOR = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<factor>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
# The copies that PEFT's wrappers hold; a name without them is that of the model's own tensor.
_ORIGINAL = "original_module"  # the model's own beside the one that trained
_WRAPPERS = ("base_layer", _ORIGINAL, "modules_to_save")
_COMPILED = "_orig_mod."  # what torch.compile puts before the name of what it wraps
_PLAIN = BY_NAME["lora"]
_OWN = {word: kind for kind in BY_NAME.values() for word in kind.words}
_REFUSED = {
    "lora_embedding_A": "LoRA on an embedding", "lora_embedding_B": "LoRA on an embedding",
    "trainable_tokens_delta": "trainable tokens",
}  # fmt: skip
# What models call their input and output embeddings, which PEFT's save_embedding_layers adds.
_EMBEDDINGS = frozenset(
    {
        "embed_tokens",
        "lm_head",
        "word_embeddings",
        "wte",
        "embed_in",
        "embed_out",
        "tok_embeddings",
        "shared",
        "decoder",
    }
)
_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftTensors:
    """What a file holds."""

    pairs: Mapping[str, LoraPair]
    dtype: Dtype  # of the factors; F32 where they have several, which it holds exactly
    extras: Extras = field(default_factory=dict)  # of classification heads, by their names in the model
    extra_dtypes: Mapping[str, Dtype] = field(default_factory=dict)  # in which those are stored
    saved_modules: Mapping[str, Stored] = field(
        default_factory=dict
    )  # others of `modules_to_save`, by the tensors' names
    embeddings: Mapping[str, Stored] = field(default_factory=dict)  # of `save_embedding_layers`


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Which tensor of a file is what."""

    factors: Mapping[str, Mapping[str, str]]  # {module: {"lora_A": tensor, "lora_B": tensor}}
    extras: Sequence[str]  # of classification heads, and what the adapter's kind has of its own
    saved: Sequence[str]
    embeddings: Sequence[str]


def told_apart(file: TensorFile, saved_names: Sequence[str], kind: Kind = _PLAIN) -> TensorNames:
    """What each tensor of a file is; no value is read. Raises AdapterError, naming the tensor."""
    _check_names(file.path, file.entries, kind)
    factors: dict[str, dict[str, str]] = {}
    saved: list[str] = []
    extras: list[str] = []
    embeddings: list[str] = []
    for name in file.entries:
        match = _FACTOR.fullmatch(name)
        if name in kind.shared:
            continue
        if kind.is_own(name, PREFIX):
            extras.append(name)
        elif match and kind.has_factors and not set(_WRAPPERS) & set(match["module"].split(".")):
            of_module = factors.setdefault(match["module"], {})
            if match["factor"] in of_module:
                raise AdapterError(
                    f"{file.path}: {match['module']}.{match['factor']} is there twice, with an adapter's name in it and "
                    "without; save the adapter again with PEFT"
                )
            of_module[match["factor"]] = name
        elif _is_saved(name, saved_names) and head_part(model_tensor(name)) and _ORIGINAL not in name.split("."):
            extras.append(name)
        elif _is_saved(name, saved_names):
            saved.append(name)
        elif _is_embedding(name):
            embeddings.append(name)
        else:
            raise _stranger(file.path, name, saved_names)
    twice = [tensor for tensor, count in Counter(map(model_tensor, extras)).items() if count > 1]
    if twice:
        raise AdapterError(
            f"{file.path}: {twice[0]} is there twice, once with a wrapper's name in it; save the adapter again with PEFT"
        )
    if not factors and kind.has_factors:
        raise AdapterError(f"{file.path}: expected lora_A and lora_B of some modules, got none")
    return TensorNames(factors=factors, extras=extras, saved=saved, embeddings=embeddings)


def read_tensors(file: TensorFile, saved_names: Sequence[str], kind: Kind = _PLAIN) -> PeftTensors:
    """The tensors of a file, told apart. `saved_names` are `modules_to_save`.

    Raises AdapterError, naming the tensor, and TensorFileError for a dtype that is not read.
    """
    names = told_apart(file, saved_names, kind)
    dtypes = {file.entries[name].dtype for of_module in names.factors.values() for name in of_module.values()}
    return PeftTensors(
        pairs={module: read_pair(file, module, of_module) for module, of_module in names.factors.items()},
        dtype=cast(Dtype, dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_DTYPES) else "F32"),
        extras=extras_in(file, names),
        extra_dtypes={model_tensor(name): _kept_dtype(file, name) for name in names.extras},
        saved_modules={name: stored_in(file, name) for name in names.saved},
        embeddings={name: stored_in(file, name) for name in names.embeddings},
    )


def extras_in(file: TensorFile, names: TensorNames) -> Extras:
    """The extra tensors, copied as float32."""
    return {model_tensor(name): _floats(file, name) for name in names.extras}


def _kept_dtype(file: TensorFile, name: str) -> Dtype:
    """What an extra tensor is stored as; F32 holds those of other dtypes."""
    return cast(Dtype, file.entries[name].dtype if file.entries[name].dtype in _DTYPES else "F32")


def stored_in(file: TensorFile, name: str) -> Stored:
    """A tensor as it lies in the file, copied."""
    return cast(Dtype, file.entries[name].dtype), file.array(name).copy()


def model_tensor(name: str) -> str:
    """What the model itself calls the tensor that an adapter has beside A and B: `lm_head.weight`."""
    return ".".join(part for part in name.removeprefix(PREFIX).split(".") if part not in _WRAPPERS)


def _check_names(path: Path, names: Collection[str], kind: Kind) -> None:
    """Raise AdapterError for names that say that the file is no adapter as PEFT saves one."""
    for name in names:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise AdapterError(f"{path}: a tensor is named {name!r:.80}; expected the name of a module's tensor")
    for name in names:
        for word, other in _OWN.items():
            if word in name.split(".") and word not in kind.words:
                raise AdapterError(
                    f"{path}: tensor {name} is {other.title}'s, and {CONFIG} says that the adapter is {kind.title}; take "
                    "both files from one save of PEFT's"
                )
        for part in _REFUSED.keys() & set(name.split(".")):
            raise AdapterError(
                f"{path}: tensor {name} is {_REFUSED[part]}, which is not supported; train LoRA on linear modules alone"
            )
    adapters = sorted({match["adapter"] for match in map(_FACTOR.fullmatch, names) if match and match["adapter"]})
    if len(adapters) > 1:
        raise AdapterError(
            f"{path}: holds several adapters ({', '.join(adapters)[:200]}); save each by itself with PEFT: "
            "model.save_pretrained(DIR, selected_adapters=[NAME])"
        )
    misplaced = next((name for name in names if ".lora_" in name and not _is_placed(name)), None)
    if misplaced is not None:
        items, fault = "load_file(f).items()", f"does not begin with {PREFIX}, once"
        if any(_COMPILED in name for name in names):
            items = f"((k.replace('{_COMPILED}', ''), v) for k, v in {items})"
            fault = f"has {_COMPILED} in its name, which torch.compile writes"
        renamed = "k[k.rindex(p):]" if any(PREFIX in name.replace(_COMPILED, "") for name in names) else "p + k"
        raise AdapterError(
            f"{path}: tensor {misplaced} {fault}: PEFT loads none that is named so; rename them "
            f'by running this in {path.parent}: python -c "from safetensors.torch import load_file, save_file; '
            f"p = '{PREFIX}'; f = '{WEIGHTS}'; "
            f"save_file({{{renamed}: v for k, v in {items}}}, f, metadata={{'format': 'pt'}})\""
        )


def _is_placed(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(PREFIX + PREFIX) and _COMPILED not in name


def _floats(file: TensorFile, name: str) -> NDArray[np.float32]:
    if file.entries[name].dtype == "F64":
        with np.errstate(over="ignore"):
            return file.array(name).astype(np.float32)
    return file.float32(name).copy()


def read_pair(file: TensorFile, module: str, names: Mapping[str, str]) -> LoraPair:
    """The factors of one module, copied as float32. Raises AdapterError."""
    path = file.path
    if names.keys() != {"lora_A", "lora_B"}:
        raise AdapterError(f"{path}: {module} has {', '.join(names)} only; expected lora_A and lora_B")
    factors = {factor: _floats(file, name) for factor, name in names.items()}
    if empty := sorted(factor for factor, values in factors.items() if not values.size):
        raise AdapterError(
            f"{path}: {module}.{empty[0]} is empty, as DeepSpeed ZeRO-3 saves what it did not gather; save the adapter "
            "again with stage3_gather_16bit_weights_on_model_save"
        )
    try:
        return LoraPair(factors["lora_A"], factors["lora_B"])
    except AdapterError as error:
        raise AdapterError(f"{path}: {module}: {error}") from None


def _is_saved(name: str, saved_names: Sequence[str]) -> bool:
    # PEFT saves every module whose full name ends so: `classifier` is DistilBERT's pre_classifier too.
    return name.startswith(PREFIX) and any(f"{saved}." in f"{name}." for saved in saved_names)


def _is_embedding(name: str) -> bool:
    parts = model_tensor(name).split(".")
    return (
        name.startswith(PREFIX)
        and ".lora_" not in name
        and len(parts) > 1
        and parts[-2] in _EMBEDDINGS
        and parts[-1] in ("weight", "bias")
    )


def _stranger(path: Path, name: str, saved_names: Sequence[str]) -> AdapterError:
    saved = ", ".join(saved_names) or "none"
    told = f"{path}: tensor {name} is neither lora_A or lora_B of a target module nor part of modules_to_save ({saved})"
    head = next((part for part in HEADS if part in name), None)
    if head is not None:
        return AdapterError(
            f"{told}: a {head} trains whole here, not with LoRA; train with task_type SEQ_CLS and without {head} among "
            f"target_modules: PEFT then saves the {head} whole, and names it in modules_to_save"
        )
    return AdapterError(f"{told}; save the adapter with PEFT's save_pretrained, which writes no other tensor")
