"""The adapter of a PEFT directory, ours or anybody's, checked for the base that it is used with."""

from __future__ import annotations

from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError
from fedlora.lora.adapter import Adapter
from fedlora.peft.directory import PeftDirectory, read_peft


def adapter_of(directory: Path, base: BasePack | None) -> tuple[Adapter, str]:
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
    return content.adapter, _base_of(content, base, _named(directory, content))


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
