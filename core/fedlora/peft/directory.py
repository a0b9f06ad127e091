"""PEFT's adapter directory, read and written: adapter_config.json and adapter_model.safetensors.

What fedlora does not interpret (other configuration keys, modules of `modules_to_save` that are no classification head, the
stored dtype) is kept, so that what was read is written back equal; factors of several dtypes are written in the one that
holds them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.errors import AdapterError, ConfigError, TensorFileError
from fedlora.files.atomic import whole_directory
from fedlora.files.tensor_file import Dtype, TensorFile, from_float32, write_in_order
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.kinds import heads_in, kind_of
from fedlora.lora.kinds.kind import modules_of, word_of
from fedlora.peft.configuration import (
    adapter_config,
    check_plain,
    config_to_write,
    kind_in,
    read_config,
    saved_module_names,
)
from fedlora.peft.layout import CONFIG, PREFIX, WEIGHTS, factor_name
from fedlora.peft.missing import check_is_there
from fedlora.peft.origin import Origin, origin_in
from fedlora.peft.patterns import untargeted
from fedlora.peft.tensors import Stored, model_tensor, read_tensors

__all__ = ["CONFIG", "WEIGHTS", "PeftDirectory", "read_peft", "write_peft"]

_MAX_WEIGHTS_BYTES = 8 << 30  # a file with holes takes no room on the disk, and all of it in memory
_BASE_KEY = "fedlora_base"  # in the safetensors metadata: PEFT ignores it


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftDirectory:
    """What a PEFT directory holds."""

    adapter: Adapter
    base_fingerprint: str | None = None  # of the base pack it was trained on; None where PEFT itself wrote it
    origin: Origin | None = None  # the adapters that it was made of
    dtype: Dtype = "F32"  # of the stored factors
    extra_dtypes: Mapping[str, Dtype] = field(
        default_factory=dict
    )  # of the stored extra tensors; F32 where it says none
    config: Mapping[str, Any] = field(default_factory=dict)  # adapter_config.json as it was
    saved_modules: Mapping[str, Stored] = field(
        default_factory=dict
    )  # others of `modules_to_save`, by the tensors' names
    embeddings: Mapping[str, Stored] = field(default_factory=dict)  # of `save_embedding_layers`: mostly the base's own

    @property
    def beside(self) -> Mapping[str, Stored]:
        """All tensors that the adapter has not, by their names in the file."""
        return {**self.saved_modules, **self.embeddings}

    @property
    def extras(self) -> Mapping[str, Stored]:
        """The extra tensors of the adapter, by their names in the file."""
        return self._stored(self.adapter.extras)

    @property
    def heads(self) -> Mapping[str, Stored]:
        """Those of a head, without the tensors that the adapter's kind has."""
        return self._stored(heads_in(self.adapter))

    def _stored(self, tensors: Extras) -> dict[str, Stored]:
        dtypes = {name: self.extra_dtypes.get(name, "F32") for name in tensors}
        return {self._name(n): (dtypes[n], from_float32(v, dtypes[n])) for n, v in tensors.items()}

    def _name(self, tensor: str) -> str:
        kind = kind_of(self.adapter)
        return kind.stored_name(tensor, PREFIX) if word_of(tensor) in kind.words else f"{PREFIX}{tensor}"


def read_peft(directory: str | Path, *, any_kind: bool = False) -> PeftDirectory:
    """Read an adapter. Raises AdapterError, naming the file and what is wrong, unless it is sound, and plain LoRA.

    With `any_kind` it may be of any that fedlora trains: for those who can compute with it.
    """
    directory = Path(directory)
    check_is_there(directory)
    config = read_config(directory / CONFIG)
    kind = kind_in(config)
    if not any_kind:
        check_plain(kind, directory / CONFIG)
    path = directory / WEIGHTS
    if path.is_file() and path.stat().st_size > _MAX_WEIGHTS_BYTES:
        raise AdapterError(f"{path}: {path.stat().st_size} bytes; an adapter of at most {_MAX_WEIGHTS_BYTES} is read")
    try:
        file = TensorFile(path, in_memory=True)
        tensors = read_tensors(file, saved_module_names(config, directory / CONFIG), kind)
    except TensorFileError as error:
        raise AdapterError(str(error)) from None
    try:
        own = {name: array for name, array in tensors.extras.items() if word_of(name) in kind.words}
        idle = untargeted(config, [*tensors.pairs, *modules_of(own)])
        if idle:
            raise AdapterError(
                f"{WEIGHTS} has tensors of {idle[0]}, which {CONFIG} does not target: PEFT would not load them; "
                "take both files from one save of PEFT's"
            )
        adapter = Adapter(adapter_config(config, kind, tensors.pairs, own), tensors.pairs, extras=tensors.extras)
        kind.check_whole(adapter)
        kind.check_shared(adapter.config, {name: file.float32(name) for name in kind.shared if name in file.entries})
    except (AdapterError, ConfigError) as error:
        raise AdapterError(f"{directory}: {error}") from None
    adapter.check_finite(str(path))
    return PeftDirectory(
        adapter=adapter,
        base_fingerprint=base_in(file),
        origin=origin_in(file.metadata, str(path)),
        dtype=tensors.dtype,
        config=config,
        extra_dtypes=tensors.extra_dtypes,
        saved_modules=tensors.saved_modules,
        embeddings=tensors.embeddings,
    )


def base_in(file: TensorFile) -> str | None:
    """The fingerprint that a weights file records; None where PEFT wrote it. Raises AdapterError for what is none."""
    base = file.metadata.get(_BASE_KEY)
    if base is not None and not re.fullmatch(r"[0-9a-f]{64}", base):
        raise AdapterError(
            f"{file.path}: {_BASE_KEY} is {base!r:.80}; expected the 64 hexadecimal digits of a fingerprint"
        )
    return base


def metadata_of(base_fingerprint: str | None, origin: Origin | None) -> dict[str, str]:
    """The metadata of a weights file."""
    base = {_BASE_KEY: base_fingerprint} if base_fingerprint else {}
    return {"format": "pt", **base, **(origin.to_metadata() if origin else {})}


def write_peft(
    directory: str | Path, content: PeftDirectory, *, base_name: str | None = None, texts: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:  # fmt: skip
    """Write an adapter so that PEFT, and `read_peft`, read it back equal. The directory appears whole or not at all.

    `texts` are further files, {name: content}; `replace` another adapter that is there. Raises ConfigError.
    """
    adapter = content.adapter
    saved = [model_tensor(name) for name in (*content.heads, *content.saved_modules)]
    config = config_to_write(adapter, content.config, saved, base_name)
    arrays = dict(_named_factors(adapter, content.dtype)) | dict(content.extras) | dict(content.beside)
    metadata = metadata_of(content.base_fingerprint, content.origin)
    with whole_directory(Path(directory), replace=CONFIG if replace else None) as aside:
        for name, text in (texts or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        (aside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        # Not by the safetensors library: an adapter has a digest, and two entries of metadata have no order there.
        write_in_order(aside / WEIGHTS, arrays, metadata, at_rest=WEIGHTS)


def _named_factors(adapter: Adapter, dtype: Dtype) -> Iterator[tuple[str, Stored]]:
    for module, pair in adapter.pairs.items():
        yield factor_name(module, "lora_A"), (dtype, from_float32(pair.lora_A, dtype))
        yield factor_name(module, "lora_B"), (dtype, from_float32(pair.lora_B, dtype))
