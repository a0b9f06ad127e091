"""A PEFT directory whose factors are read one module at a time: what it takes of memory is one module's.

An encrypted file is in memory as a whole. `directory.read_peft` reads a stranger's file whole, which nobody can change
meanwhile; this is for one's own commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import AdapterError, ConfigError, TensorFileError
from fedlora.files.at_rest import plain_digest
from fedlora.files.tensor_file import TensorFile
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.peft.configuration import check_plain, kind_in, lora_config, read_config, saved_module_names
from fedlora.peft.directory import PeftDirectory, base_in
from fedlora.peft.layout import CONFIG, WEIGHTS
from fedlora.peft.missing import check_is_there
from fedlora.peft.patterns import untargeted
from fedlora.peft.tensors import TensorNames, extras_in, read_pair, stored_in, told_apart


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedAdapter:
    """What `open_mapped` returns: everything but the factors, which `pair` reads."""

    directory: Path
    config: LoraConfig
    shapes: Mapping[str, tuple[int, int]]  # {module: (O, I)} of the weights that are updated
    base_fingerprint: str | None
    peft_config: Mapping[str, Any]  # adapter_config.json as it is
    _file: TensorFile
    _names: TensorNames

    def pair(self, module: str) -> LoraPair:
        """The factors of one module, as float32. Raises AdapterError where one is not finite."""
        pair = read_pair(self._file, module, self._names.factors[module])
        Adapter(self.config, {module: pair}).check_finite(str(self._file.path))
        return pair

    def beside(self) -> PeftDirectory:
        """What the directory holds beside the factors: its adapter has no modules."""
        return PeftDirectory(
            adapter=Adapter(self.config, {}, extras=extras_in(self._file, self._names)),
            base_fingerprint=self.base_fingerprint,
            config=self.peft_config,
            saved_modules={name: stored_in(self._file, name) for name in self._names.saved},
            embeddings={name: stored_in(self._file, name) for name in self._names.embeddings},
        )

    def sha256(self) -> str:
        """Of what the weights file holds, encrypted at rest or not, in hexadecimal."""
        return plain_digest(self._file.path)


def open_mapped(directory: Path) -> MappedAdapter:
    """Open an adapter. Raises AdapterError, naming the file, unless it is plain LoRA in the shapes that it tells."""
    check_is_there(directory)
    config = read_config(directory / CONFIG)
    check_plain(kind_in(config), directory / CONFIG)
    try:
        file = TensorFile(directory / WEIGHTS)
    except TensorFileError as error:
        raise AdapterError(str(error)) from None
    names = told_apart(file, saved_module_names(config, directory / CONFIG))
    try:
        idle = untargeted(config, names.factors)
        if idle:
            raise AdapterError(
                f"{WEIGHTS} has tensors of {idle[0]}, which {CONFIG} does not target: PEFT would not load them; "
                "take both files from one save of PEFT's"
            )
        described = lora_config(config, names.factors)
        shapes = {module: _shape(file, described, module, of_module) for module, of_module in names.factors.items()}
    except (AdapterError, ConfigError) as error:
        raise AdapterError(f"{directory}: {error}") from None
    return MappedAdapter(
        directory=directory, config=described, shapes=shapes, base_fingerprint=base_in(file), peft_config=config,
        _file=file, _names=names,
    )  # fmt: skip


def _shape(file: TensorFile, config: LoraConfig, module: str, names: Mapping[str, str]) -> tuple[int, int]:
    """(O, I), once the factors are [R, I] and [O, R] of the rank that the configuration says."""
    shapes = {factor: file.entries[name].shape for factor, name in names.items()}
    a, b, rank = shapes.get("lora_A", ()), shapes.get("lora_B", ()), config.rank_of(module)
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank or 0 in (*a, *b):
        raise AdapterError(
            f"{module}: expected lora_A [{rank}, I] and lora_B [O, {rank}], as {CONFIG} says, got {list(a)} and {list(b)}; "
            "save both files again"
        )
    return b[0], a[1]
