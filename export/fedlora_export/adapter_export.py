"""A PEFT directory, ours or anybody's, becomes an adapter file for one base."""

from __future__ import annotations

from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.exported.profiles import DEFAULT, Profile
from fedlora.peft.peft_adapter import adapter_of

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
