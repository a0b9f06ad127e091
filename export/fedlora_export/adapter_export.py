"""A PEFT directory, ours or anybody's, becomes an adapter file for one base."""

from __future__ import annotations

from pathlib import Path

from fedlora.adapter import Adapter
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.pack import BasePack
from fedlora.peft import PeftDirectory, read_peft
from fedlora.profiles import DEFAULT, Profile

from fedlora_export.onnx_adapter import write_onnx_adapter


def export_peft(directory: Path, output: Path, base: BasePack | None = None, *, profile: Profile = DEFAULT) -> None:
    """Write the LoRA adapter of a PEFT directory as `output` and its manifest, for the graph of `profile`.

    Raises as `adapter_of` and `write_onnx_adapter`; ConfigError for `fast` without a base.
    """
    if profile == "fast" and base is None:
        raise ConfigError(
            "profile fast joins the modules that read the same input, and which those are is the base's to say; "
            "pass --base PACK"
        )
    adapter, fingerprint = adapter_of(directory, base)
    joined_for = base.model if base and profile == "fast" else None
    write_onnx_adapter(adapter, fingerprint, output, source=directory.resolve().name, joined_for=joined_for)


def adapter_of(directory: Path, base: BasePack | None) -> tuple[Adapter, str]:
    """(the adapter of a PEFT directory, the fingerprint of its base)

    `base` is needed where the adapter does not record its own, and checks names and shapes. Raises AdapterError for what is
    not plain LoRA, and AdapterMismatchError for what an adapter file cannot carry, or what is for another base.
    """
    content = read_peft(directory)
    if content.saved_modules:
        raise AdapterMismatchError(
            f"{directory}: also replaces {', '.join(sorted(content.saved_modules))} (modules_to_save), which an adapter "
            "file cannot carry, nor can a merged base; export an adapter of A and B only"
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
            f"{where}: trained on base {recorded[:16]}, but {base.directory} is {base.fingerprint[:16]}; pass its own base"
        )
    return base.fingerprint


def _named(directory: Path, content: PeftDirectory) -> str:
    """The directory, and the model that its configuration names where its writer did not know bases."""
    model = content.config.get("base_model_name_or_path")
    if content.base_fingerprint or not isinstance(model, str) or not model.isprintable():
        return str(directory)
    return f"{directory} (made for {model[:80]})"
