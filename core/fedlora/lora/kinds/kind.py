"""A kind of adapter: what it adds to the frozen base, by the tensors of its own that it trains.

`lora` trains the factors A and B of each module, and no tensor beside them. Every other kind trains **own tensors**: extra
tensors of the adapter (`lora/adapter.py`) whose names end with a word of the kind, with factors or without. So they travel,
are checked, averaged, encrypted and resumed as all extra tensors are; what the trainer does with them is in
`fedlora_client/layers`. The run's key `lora.method` names the kind; `server.method` is how a server aggregates.
"""

# O out features, I in features of a module

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.config import LoraConfig

Shape = tuple[int, ...]
Weight = Callable[[str], NDArray[np.float32]]  # a module's weight [O, I], dequantized
Bias = Callable[[str], NDArray[np.float32]]  # a module's bias [O], where it has one


class Kind(ABC):
    """One kind. Its file says which formula it is, and from which paper."""

    name: ClassVar[str]  # as `lora.method` has it
    title: ClassVar[str]  # as people write it
    words: ClassVar[tuple[str, ...]] = ()  # with which the names of its own tensors end
    has_factors: ClassVar[bool] = False  # A and B, which methods of aggregation see
    is_lora: ClassVar[bool] = False  # `as_lora` makes plain LoRA of it
    scales: ClassVar[bool] = False  # a vector scales what a module gives, or its input
    is_virtual: ClassVar[bool] = False  # it is tokens before the text, and no change of a weight
    keys: ClassVar[frozenset[str]]  # of the section `lora`, those that it uses
    takes_dropout: ClassVar[bool] = False  # train.dropout
    rate: ClassVar[float] = 1.0  # times the learning rate of LoRA by default: docs/adapters.md
    mean: ClassVar[str]  # what a weighted mean of it means
    mean_is_exact: ClassVar[bool]  # the mean of the tensors is the mean of what they do: robust rules may compare them
    peft_type: ClassVar[str]  # in adapter_config.json
    peft_mark: ClassVar[str]  # what in it says so
    kept_keys: ClassVar[tuple[str, ...]] = ()  # of a PEFT configuration that was read, beside who wrote it
    shared: ClassVar[tuple[str, ...]] = ()  # tensors of PEFT's file that are made again, and not kept

    def default_targets(self, modules: Iterable[str]) -> tuple[str, ...]:
        """What `lora.target_modules = all-linear` means: the last parts of the names of all linear modules."""
        return tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))

    @abstractmethod
    def shapes(self, config: LoraConfig, model: ModelShape) -> dict[str, Shape]:
        """{name: shape} of the own tensors of an adapter of this configuration. Raises ConfigError."""

    @abstractmethod
    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        """The own tensors of a new adapter, which changes nothing, unless its file says otherwise."""

    @abstractmethod
    def check(self, adapter: Adapter, model: ModelShape, where: str) -> None:
        """Raise AdapterMismatchError unless the own tensors are for this base, and all there."""

    def check_whole(self, adapter: Adapter) -> None:  # noqa: B027 (most are whole where they are there)
        """Raise AdapterError where tensors are missing that belong together."""

    def check_whole_at(self, adapter: Adapter, where: str) -> None:
        """The same with a place, as AdapterMismatchError."""
        try:
            self.check_whole(adapter)
        except AdapterError as error:
            raise AdapterMismatchError(f"{where}: {error}") from None

    def trained_rank(self, adapter: Adapter) -> int:
        """The largest rank of what is computed beside a weight; 0 where there is no product."""
        return max((pair.rank for pair in adapter.pairs.values()), default=0)

    def held_bytes(self, adapter: Adapter, model: ModelShape) -> int:
        """What a training holds for the adapter beside its numbers."""
        return 0

    def lora_bytes(self, adapter: Adapter, model: ModelShape) -> int:
        """What the factors of `as_lora` take, told before they are made."""
        return sum(pair.lora_A.nbytes + pair.lora_B.nbytes for pair in adapter.pairs.values())

    def as_lora(self, adapter: Adapter, model: ModelShape) -> Adapter | None:
        """The same adapter as plain LoRA, exactly; None where there is none."""
        return None

    def as_scaled(self, adapter: Adapter, model: ModelShape, weight: Weight, bias: Bias) -> Adapter:
        """The same adapter as exported graphs take it: plain LoRA, and what scales modules (`lora/output_scale.py`).

        Asked of kinds that scale. Raises AdapterError where a graph has no place for what it scales.
        """
        raise NotImplementedError

    def merged(self, adapter: Adapter, module: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """W' [O, I] of one of `modules_in`."""
        product = adapter.product(module)
        return weight + (product.B @ product.A).astype(np.float32)

    def merged_bias(self, adapter: Adapter, module: str, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        """b' [O] of one of `modules_in`, where it has a bias."""
        return bias

    def refuses_method(self, method: str) -> str:
        """Why a method of aggregation (`server.method`) does not fit; empty where it does."""
        return ""

    # PEFT's directory

    def stored_name(self, tensor: str, prefix: str) -> str:
        """What PEFT's file calls an own tensor; `prefix` is what it puts before a module's name."""
        return prefix + tensor

    def is_own(self, stored: str, prefix: str) -> bool:
        """Whether a tensor of PEFT's file, by its name there, is an own tensor."""
        return word_of(stored) in self.words and stored.startswith(prefix)

    def reads(self, peft_config: Mapping[str, Any]) -> bool:
        """Whether a configuration is of this kind."""
        return bool(peft_config.get("peft_type") == self.peft_type)

    def config_of(self, peft_config: Mapping[str, Any], own: Extras) -> LoraConfig:
        """The configuration of an adapter that was read. Raises AdapterError, ConfigError for what would change it.

        Not asked of kinds with factors, which have PEFT's configuration of LoRA.
        """
        raise NotImplementedError

    def check_config(  # noqa: B027 (most say nothing of the base's sizes)
        self, peft_config: Mapping[str, Any], model: ModelShape, where: str
    ) -> None:
        """Raise AdapterMismatchError where a configuration that was read says that it is for a base of another size."""

    def check_shared(  # noqa: B027 (most share nothing)
        self, config: LoraConfig, shared: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Raise AdapterError where tensors named in `shared` are not what fedlora makes of the configuration."""

    @abstractmethod
    def peft_config(self, adapter: Adapter, fresh: dict[str, Any]) -> dict[str, Any]:
        """adapter_config.json of an adapter, made of what it would be of plain LoRA on the same modules."""


def own_tensors(adapter: Adapter, kind: Kind) -> Extras:
    """The extra tensors that are the kind's."""
    return {name: array for name, array in adapter.extras.items() if word_of(name) in kind.words}


def heads_of(adapter: Adapter, kind: Kind) -> Extras:
    """The extra tensors that are not the kind's: those of a head."""
    return {name: array for name, array in adapter.extras.items() if word_of(name) not in kind.words}


def word_of(tensor: str) -> str:
    """The last part of a tensor's name: a word of the kind, where it is an own tensor."""
    return tensor.rpartition(".")[2]


def modules_in(adapter: Adapter, kind: Kind) -> list[str]:
    """The modules that an adapter is on."""
    return list(adapter.pairs) or modules_of(own_tensors(adapter, kind))


def modules_of(own: Iterable[str]) -> list[str]:
    """The modules that own tensors belong to, each once, in their order; virtual tokens belong to none."""
    return list(dict.fromkeys(tensor.rpartition(".")[0] for tensor in own if "." in tensor))


def check_module(tensor: str, modules: Mapping[str, tuple[int, int]], where: str) -> tuple[int, int]:
    """(O, I) of the module of an own tensor. Raises AdapterMismatchError where the base's `modules` have no such one."""
    module, _, _ = tensor.rpartition(".")
    if module not in modules:
        raise AdapterMismatchError(
            f"{where}: it has {tensor}, and the base has no module {module}; the adapter is for another base"
        )
    return modules[module]


def check_shape(tensor: str, array: NDArray[np.float32], allowed: Iterable[Shape], where: str) -> None:
    """Raise AdapterMismatchError unless a tensor has one of the shapes."""
    allowed = list(allowed)
    if array.shape not in allowed:
        expected = " or ".join(str(list(shape)) for shape in allowed)
        raise AdapterMismatchError(
            f"{where}: its {tensor} is {list(array.shape)}, the base takes {expected}; the adapter is for a base of "
            "another size"
        )
