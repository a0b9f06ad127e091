"""A PEFT directory, ours or anybody's, becomes a file of ONNX Runtime's adapter format, with its manifest beside it."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.counted import counted
from fedlora.data.adapter_chat import adapter_chat_settings
from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import AdapterError, ConfigError
from fedlora.exported.adapter_manifest import adapter_manifest_text
from fedlora.exported.cache_prefix import Heads, prefix_heads, unstacked
from fedlora.exported.flat_buffer import MAX_BYTES
from fedlora.exported.inputs import input_values, joined_values, model_version
from fedlora.exported.profiles import DEFAULT, Profile
from fedlora.exported.sidecar import sidecar_of
from fedlora.family import ModelShape
from fedlora.files.at_rest import encrypts, write_bytes
from fedlora.files.atomic import whole_file
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import kind_of, own_in
from fedlora.peft.configuration import kind_in, read_config
from fedlora.peft.finding import find_adapter
from fedlora.peft.for_base import adapter_of
from fedlora.peft.layout import CONFIG

_ADAPTER_VERSION = 1


def export_peft(
    directory: str | Path, output: str | Path, base: BasePack | None = None, *, profile: Profile = DEFAULT
) -> None:
    """Write the adapter of a PEFT directory as `output` and its manifest, for the graph of `profile`.

    It is LoRA, with what scales modules where it is of DoRA or IA3, or of virtual tokens: then their keys and values on the
    base are written, which torch computes of a prompt.

    Raises as `adapter_of`, `prefix_heads` and `write_onnx_adapter`; ConfigError for `fast` without a base.
    """
    if profile == "fast" and base is None:
        raise ConfigError(
            "profile fast joins the modules that read the same input, and which those are is the base's to say; "
            "pass --base PACK"
        )
    directory, output = find_adapter(directory), Path(output)
    adapter, fingerprint = adapter_of(directory, base, scaled=True, virtual=True, max_bytes=MAX_BYTES)
    joined_for = base.model if base and profile == "fast" else None
    write_onnx_adapter(
        adapter,
        fingerprint,
        output,
        source=directory.resolve().name,
        joined_for=joined_for,
        method=kind_in(read_config(directory / CONFIG)).name,
        chat=adapter_chat_settings(directory),
        heads=prefix_heads(adapter, base, str(directory)) if base and kind_of(adapter).is_virtual else None,
    )


def write_onnx_adapter(
    adapter: Adapter,
    base_fingerprint: str,
    path: Path,
    *,
    source: str = "",
    chat: ChatSettings | None = None,  # how to speak with it, which the manifest keeps
    method: str = "lora",  # the kind that it was, which the manifest keeps where it scales modules
    joined_for: ModelShape | None = None,  # the base, for its graph of profile fast; None: for that of profile compat
    heads: Heads | None = None,  # of its virtual tokens on the base: `prefix_heads`
) -> None:
    """Write `adapter` as inputs of the base's graph, and PATH.json, which names the base in full.

    Each file appears whole, the adapter first; between the two a reader finds a digest that does not fit, and refuses.
    Raises AdapterError for an adapter that the format cannot hold, ConfigError where the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; name the file to write, such as {path / 'my.onnx_adapter'}")
    if heads is None and own_in(adapter):
        raise AdapterError(
            f"{path}: an adapter of {kind_of(adapter).title} as it trains is no input of a graph; write its PEFT directory "
            "with: fedlora export-adapter"
        )
    # Kept until the file is written: an OrtValue does not own its memory.
    values = input_values(adapter) if heads is None else unstacked(heads)
    if joined_for is not None and heads is None:
        values = joined_values(values, joined_for.linear_modules(), joined_for.linear_groups())
    size = sum(value.nbytes for value in values.values())
    if not values or size >= MAX_BYTES:
        raise AdapterError(
            f"{path}: {counted(len(values), 'value')} of {size} bytes; the format holds at least one, and less than "
            f"{MAX_BYTES} bytes"
        )
    content = ort.AdapterFormat()
    content.set_adapter_version(_ADAPTER_VERSION)
    content.set_model_version(model_version(base_fingerprint))
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    with whole_file(sidecar_of(path)) as manifest, whole_file(path) as aside:
        data = _write(content, aside, path.name)
        text = adapter_manifest_text(
            adapter, base_fingerprint, source, data,
            profile="compat" if joined_for is None else "fast",
            inputs={name: value.shape for name, value in values.items()},
            method=method,
            chat=chat,
        )  # fmt: skip
        manifest.write_text(text, encoding="utf-8")


def _write(content: ort.AdapterFormat, aside: Path, name: str) -> bytes:
    """Write an adapter file, which will be called `name`; its content. ONNX Runtime writes to a path alone."""
    if not encrypts():
        content.export_adapter(str(aside))
        return aside.read_bytes()
    if not hasattr(os, "memfd_create"):
        raise ConfigError(
            f"{name}: at_rest_key is set, and on Linux alone an adapter file is encrypted; unset it for this"
        )
    descriptor = os.memfd_create("adapter", os.MFD_CLOEXEC)
    try:
        in_memory = Path(f"/proc/self/fd/{descriptor}")
        content.export_adapter(str(in_memory))
        data = in_memory.read_bytes()
    finally:
        os.close(descriptor)
    write_bytes(aside, name, data)
    return data
