"""An adapter and the base that it is for: whether it fits, and whether what it has beside A and B is the base's own.

PEFT writes embeddings beside A and B as they are, trained or not (`save_embedding_layers`, which is on by itself once the
vocabulary was resized). Those that did not train are the base's, and nothing is lost without them. A base knows its own as
its quantization has them: a tensor is its own where each value lies in that cell of the grid which the base stores.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import BasePack
from fedlora.base.quantize import QuantizedMatrix, dequantize, stands_for
from fedlora.errors import AdapterError, AdapterMismatchError, AdapterTooLargeError, TensorFileError
from fedlora.family import EMBEDDING, HEAD
from fedlora.files.tensor_file import as_float32
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.kinds import adapted_modules, check_adapter_fits, kind_of
from fedlora.peft.configuration import check_plain, kind_in, read_config
from fedlora.peft.directory import PeftDirectory, read_peft
from fedlora.peft.layout import CONFIG
from fedlora.peft.misplaced import check_modules
from fedlora.peft.missing import check_is_there
from fedlora.peft.tensors import Stored, model_tensor

_log = logging.getLogger(__name__)
_ROUNDED = 1.01 * 2.0**-8  # the largest relative error of a value in bfloat16
_SHOWN = 4
MAX_LORA_BYTES = 8 << 30  # as of a file of plain LoRA


def adapter_of(
    directory: str | Path,
    base: BasePack | None,
    *,
    any_kind: bool = False,
    scaled: bool = False,
    virtual: bool = False,
    max_bytes: int = MAX_LORA_BYTES,
) -> tuple[Adapter, str]:
    """(the adapter of a PEFT directory as plain LoRA, the fingerprint of its base)

    `base` is needed where the adapter does not record its own, or has tensors beside A and B; it checks names and shapes.
    A kind that is not LoRA and cannot become it, exactly, stays what it is with `any_kind`, and one of virtual tokens with
    `virtual`; with `scaled` it is plain LoRA and what scales modules, as exported graphs take it (`lora/output_scale.py`),
    where it can be. Raises AdapterError for it without, and for what is of no known kind, AdapterMismatchError for what
    cannot be expressed by A and B, or what is for another base, and AdapterTooLargeError for what plain LoRA would take
    more than `max_bytes` of: VeRA's file is small.
    """
    where = str(directory)
    check_is_there(Path(directory))
    kind = kind_in(read_config(Path(directory) / CONFIG))
    if not (any_kind or kind.is_lora or (scaled and kind.scales) or (virtual and kind.is_virtual)):
        check_plain(kind, Path(directory) / CONFIG)
    content = read_peft(directory, any_kind=True)
    kept = beside_of(content, base, where).replaced
    if kept:
        raise AdapterMismatchError(
            f"{where}: also replaces {_listed(kept)}{_how(content, kept)}, which an adapter file cannot carry, nor can a "
            f"merged base or a service; {_remedy(kept, base)}"
        )
    fingerprint = _base_of(content, base, _named(Path(directory), content))
    if kind.name == "lora":
        return content.adapter, fingerprint
    if base is None:
        raise AdapterMismatchError(f"{where}: what {kind.title} comes to depends on the base; pass --base PACK")
    if scaled and kind.scales:
        try:
            return scaled_of(content.adapter, base), fingerprint
        except AdapterError as error:
            raise AdapterError(f"{where}: {error}") from None
    if kind.is_lora and (size := kind.lora_bytes(content.adapter, base.model)) > max_bytes:
        raise AdapterTooLargeError(
            f"{where}: as plain LoRA {kind.title} of rank {content.adapter.config.rank} has {size} bytes, at most "
            f"{max_bytes} are taken; raise the budget, or train an adapter of a smaller rank"
        )
    return kind.as_lora(content.adapter, base.model) or content.adapter, fingerprint


def scaled_of(adapter: Adapter, base: BasePack) -> Adapter:
    """An adapter of a kind that scales, as exported graphs take it. Raises AdapterError."""
    return kind_of(adapter).as_scaled(
        adapter,
        base.model,
        lambda module: dequantize(base.matrix(module)),
        lambda module: base.floats(f"{module}.bias"),
    )


def whole_adapter_of(directory: str | Path, base: BasePack) -> Adapter:
    """The adapter of a PEFT directory, of whatever kind, with the heads that trained with it.

    Raises AdapterError for what is of no known kind, and AdapterMismatchError for what is for another base, or replaces
    what is no head.
    """
    content, where = read_peft(directory, any_kind=True), str(directory)
    kept = beside_of(replace(content, adapter=with_extras(content.adapter, {})), base, where).replaced
    if kept:
        raise AdapterMismatchError(
            f"{where}: also replaces {_listed(kept)}{_how(content, kept)}, which is no part of an adapter; "
            f"{_remedy(kept, base)}"
        )
    check_is_for(content, base, _named(Path(directory), content))
    return content.adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The tensors beside A and B, against a base."""

    own: tuple[str, ...] = ()  # those that are the base's own: nothing is lost without them
    replaced: Mapping[str, Stored] = field(default_factory=dict)  # {name: values} of the others


def beside_of(content: PeftDirectory, base: BasePack | None, where: str, *, heads: bool = False) -> Beside:
    """What an adapter has beside A and B, and its `heads`, for those who cannot take them.

    What is the base's own is told, once, to the log. Without a base nothing is.
    """
    beside = {**content.beside, **(content.heads if heads else {})}
    own = [name for name, stored in beside.items() if base is not None and _is_own(base, name, stored, where)]
    if own:
        _log.warning("%s: %s did not train: the base's own are used", where, _listed(own))
    return Beside(own=tuple(own), replaced={name: stored for name, stored in beside.items() if name not in own})


def check_is_for(content: PeftDirectory, base: BasePack, where: str) -> None:
    """Raise AdapterMismatchError unless every module is one of the base's, and the base the recorded one, if any."""
    check_modules(adapted_modules(content.adapter), base, where)
    check_adapter_fits(content.adapter, base.model, base.model.head_inputs(), where)
    kind_of(content.adapter).check_config(content.config, base.model, where)
    recorded = content.base_fingerprint
    if recorded not in (None, base.fingerprint):
        raise AdapterMismatchError(
            f"{where}: trained on base {recorded[:16]}, but {base.directory} is {base.fingerprint[:16]}; use its own base"
        )


def _base_of(content: PeftDirectory, base: BasePack | None, where: str) -> str:
    """The fingerprint of the base that the adapter is for."""
    if base is None:
        if content.base_fingerprint is None:
            raise AdapterMismatchError(
                f"{where}: does not record its base, as PEFT's own files do not; pass --base PACK"
            )
        return content.base_fingerprint
    check_is_for(content, base, where)
    return base.fingerprint


def _named(directory: Path, content: PeftDirectory) -> str:
    """The directory, and the model that its configuration names where its writer did not know bases."""
    model = content.config.get("base_model_name_or_path")
    if content.base_fingerprint or not isinstance(model, str) or not model.isprintable():
        return str(directory)
    return f"{directory} (made for {model[:80]})"


def _is_own(base: BasePack, name: str, stored: Stored, where: str) -> bool:
    """Whether a tensor of an adapter is the base's, as far as the base's quantization can tell."""
    dtype, array = stored
    module, _, kind = (tensor := model_tensor(name)).rpartition(".")
    matrices = base.model.vocabulary_modules()
    if module == HEAD and HEAD not in matrices:  # it shares the embedding
        module = EMBEDDING
    try:
        values = as_float32(array, dtype, where)
    except TensorFileError:
        return False
    if module in matrices and kind == "weight":
        return _fits(base.matrix(module), values)
    sizes = base.model.float_tensors()
    if sizes.get(tensor) != values.shape:
        return False
    mine = base.floats(tensor) - np.float32(base.model.float_offset(tensor))
    return bool(np.all(np.abs(values - mine) <= _ROUNDED * np.abs(mine)))


def _fits(matrix: QuantizedMatrix, values: NDArray[np.float32]) -> bool:
    """The base's matrix, whole, or its first rows: tokens that no tokenizer of it has may be missing."""
    rows, columns = matrix.shape
    return values.ndim == 2 and values.shape[1] == columns and 0 < len(values) <= rows and stands_for(matrix, values)


def _how(content: PeftDirectory, kept: Mapping[str, Any]) -> str:
    """Why PEFT saved them."""
    if all(name in content.saved_modules for name in kept):
        return " (modules_to_save)"
    return " (save_embedding_layers)" if all(name in content.embeddings for name in kept) else ""


def _remedy(kept: Mapping[str, Stored], base: BasePack | None) -> str:
    modules = {model_tensor(name).rpartition(".")[0] for name in kept}
    if base is None:
        return "pass --base PACK, and those that did not train are known as the base's own"
    vocabulary = {HEAD, *base.model.vocabulary_modules()}
    resized = next((name for name in kept if _is_larger(base, name, kept[name])), None)
    if resized is not None:
        rows, most = len(kept[resized][1]), base.model.vocab_size
        return (
            f"it has {rows} tokens where the base has {most}: pack the model whose vocabulary was resized before the "
            "training, or train without new tokens"
        )
    if modules <= vocabulary:
        return (
            "they are not the base's own, as far as its quantization tells: they did train, or belong to another base; "
            "train again with LoRA alone"
        )
    return "train again without modules_to_save"


def _is_larger(base: BasePack, name: str, stored: Stored) -> bool:
    module = model_tensor(name).rpartition(".")[0]
    shape = stored[1].shape
    return module in {HEAD, *base.model.vocabulary_modules()} and len(shape) == 2 and shape[0] > base.model.vocab_size


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
