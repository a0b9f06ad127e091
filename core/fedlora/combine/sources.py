"""What is combined: adapters on disk, plain LoRA module by module, and those of other kinds in memory.

VeRA is plain LoRA to whoever adds products up, given the base. DoRA is not combined: the length of a row is that of one
product, and a sum of several products has none that trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fedlora.base.pack import BasePack
from fedlora.combine.ways import Combination, Way
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError
from fedlora.files.at_rest import plain_digest
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import Kind, heads_in, kind_of
from fedlora.peft.configuration import kind_in, read_config
from fedlora.peft.directory import PeftDirectory, read_peft
from fedlora.peft.for_base import check_is_for
from fedlora.peft.layout import CONFIG, WEIGHTS
from fedlora.peft.mapped import open_mapped


class Source(Protocol):
    """One of the adapters that are combined: `MappedAdapter`, or a `WholeAdapter`."""

    @property
    def directory(self) -> Path: ...
    @property
    def config(self) -> LoraConfig: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]: ...
    @property
    def base_fingerprint(self) -> str | None: ...
    @property
    def peft_config(self) -> Mapping[str, Any]: ...
    def pair(self, module: str) -> LoraPair: ...
    def beside(self) -> PeftDirectory: ...
    def sha256(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAdapter:
    """An adapter of another kind than LoRA, in memory."""

    directory: Path
    content: PeftDirectory

    @property
    def config(self) -> LoraConfig:
        return self.content.adapter.config

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        return {module: pair.shape for module, pair in self.content.adapter.pairs.items()}

    @property
    def base_fingerprint(self) -> str | None:
        return self.content.base_fingerprint

    @property
    def peft_config(self) -> Mapping[str, Any]:
        return self.content.config

    def pair(self, module: str) -> LoraPair:
        return self.content.adapter.pairs[module]

    def beside(self) -> PeftDirectory:
        """What it holds beside factors and its kind's tensors."""
        adapter = self.content.adapter
        heads = Adapter(LoraConfig(), {}, extras=heads_in(adapter))
        return replace(self.content, adapter=heads)

    def sha256(self) -> str:
        return plain_digest(self.directory / WEIGHTS)


def kind_at(directory: Path) -> Kind:
    """The kind of the adapter in a directory. Raises AdapterError."""
    return kind_in(read_config(directory / CONFIG))


def open_source(directory: Path) -> Source:
    """An adapter of any kind that can be combined. Raises AdapterError, naming the file."""
    kind = kind_at(directory)
    if kind.name == "lora":
        return open_mapped(directory)
    if kind.name == "dora":
        raise AdapterError(
            f"{directory / CONFIG}: {kind.peft_mark}: DoRA is not combined: each row's length belongs to one product, and "
            "PEFT's own combination drops those that trained; merge it into its base (fedlora export BASE --merge ADAPTER "
            "-o DIR), or train with lora.method = lora"
        )
    return WholeAdapter(directory=directory, content=read_peft(directory, any_kind=True))


def usual_way(kinds: Sequence[Kind]) -> Way:
    """How adapters of these kinds are combined where nobody says it."""
    return "svd" if all(kind.is_lora or kind.has_factors for kind in kinds) else "linear"


def are_of_products(sources: Sequence[Source], combination: Combination) -> bool:
    """Whether it is products that are added up; else it is the tensors that one kind has of its own.

    Raises AdapterMismatchError for adapters of kinds that have no sum, ConfigError for a way that one has not.
    """
    kinds = [kind_of(source.config) for source in sources]
    if all(kind.name == "lora" for kind in kinds):
        return True
    if combination.how != "linear" and all(kind.is_lora for kind in kinds):
        return True
    for source, kind in zip(sources, kinds, strict=True):
        if kind is not kinds[0]:
            instead = "take --how cat or svd" if kind.is_lora and kinds[0].is_lora else "combine adapters of one kind"
            raise AdapterMismatchError(
                f"{source.directory}: is {kind.title}, and {sources[0].directory} is {kinds[0].title}; expected one kind, "
                f"whose numbers can be added: {instead}"
            )
    if combination.how != "linear":
        raise ConfigError(
            f"--how {combination.how}: {sources[0].directory} is {kinds[0].title}, which has no products; expected linear, "
            "the weighted sum of its numbers: take --how linear"
        )
    return False


def as_products(source: Source, base: BasePack | None) -> Source:
    """The same adapter with factors. Raises AdapterMismatchError where it takes a base to make them."""
    if not isinstance(source, WholeAdapter):
        return source
    kind = kind_of(source.config)
    if base is None:
        raise AdapterMismatchError(
            f"{source.directory}: what {kind.title} is as LoRA depends on the sizes of the base; pass --base PACK, or take "
            "--how linear"
        )
    check_is_for(source.content, base, str(source.directory))
    adapter = kind.as_lora(source.content.adapter, base.model)
    assert adapter is not None  # `is_lora` says so
    return replace(source, content=replace(source.content, adapter=adapter))
