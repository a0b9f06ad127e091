"""An adapter: the A and B of every target module, and whatever else trains and travels with them, immutable.

An **extra tensor** takes the place of the base's own of that name, whole: those of a classification head. Or it is what an
adapter of another kind than LoRA trains, and its name ends with a word of that kind (`kinds`). It has no algebra: means,
moments and moves of it go element by element, and a method of aggregation does not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.lora.algebra import Product
from fedlora.lora.config import LoraConfig


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """The factors of one module: lora_A [R, I] and lora_B [O, R], float32; read-only views, not copies."""

    lora_A: NDArray[np.float32]
    lora_B: NDArray[np.float32]

    def __post_init__(self) -> None:
        a, b = self.lora_A, self.lora_B
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise AdapterError(f"expected lora_A [R, I] and lora_B [O, R], got {list(a.shape)} and {list(b.shape)}")
        for name in ("lora_A", "lora_B"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    @property
    def rank(self) -> int:
        return int(self.lora_A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the weight that the pair updates."""
        return self.lora_B.shape[0], self.lora_A.shape[1]


Extras = Mapping[str, NDArray[np.float32]]  # {the tensor's name in the model: values}
MAX_EXTRAS = 4096  # of an adapter
MAX_LABELS = 1 << 16  # of a head that an adapter brings, as of a base


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoraConfig and, for each target module by its name in the model, a LoraPair; beside them the extra tensors."""

    config: LoraConfig
    pairs: Mapping[str, LoraPair]
    extras: Extras = field(default_factory=dict, kw_only=True)  # read-only views, not copies

    def __post_init__(self) -> None:
        for module, pair in self.pairs.items():
            if pair.rank != self.config.rank_of(module):
                raise AdapterError(
                    f"{module}: lora_A has rank {pair.rank}, the configuration says {self.config.rank_of(module)}; save "
                    "both again"
                )
        object.__setattr__(self, "pairs", MappingProxyType(dict(self.pairs)))
        object.__setattr__(self, "extras", MappingProxyType({name: _frozen(v) for name, v in self.extras.items()}))

    @property
    def size_bytes(self) -> int:
        """The factors and the extra tensors in memory."""
        return sum(pair.lora_A.nbytes + pair.lora_B.nbytes for pair in self.pairs.values()) + self.extra_bytes

    @property
    def extra_bytes(self) -> int:
        return sum(array.nbytes for array in self.extras.values())

    def product(self, module: str) -> Product:
        """scaling * B A of one module, factored."""
        pair = self.pairs[module]
        return Product(pair.lora_B * np.float32(self.config.scaling_of(module)), pair.lora_A)

    def check_finite(self, where: str) -> None:
        """Raise AdapterError, naming the tensor, where a value is NaN or infinite."""
        for module, pair in self.pairs.items():
            for name, array in (("lora_A", pair.lora_A), ("lora_B", pair.lora_B)):
                if not np.isfinite(array).all():
                    raise AdapterError(f"{where}: {module}.{name} holds NaN or infinity; the adapter cannot be used")
        for name, array in self.extras.items():
            if not np.isfinite(array).all():
                raise AdapterError(f"{where}: {name} holds NaN or infinity; the adapter cannot be used")

    def check_fits(self, modules: Mapping[str, tuple[int, int]], where: str) -> None:
        """Raise AdapterMismatchError unless every module is one of `modules` ({name: (O, I)}), in its shape."""
        check_shapes_fit({module: pair.shape for module, pair in self.pairs.items()}, modules, where)


def check_shapes_fit(
    shapes: Mapping[str, tuple[int, int]], modules: Mapping[str, tuple[int, int]], where: str
) -> None:  # both {name: (O, I)}
    """Raise AdapterMismatchError unless an adapter has modules, each one of the base's `modules`, in its shape."""
    if not shapes:
        raise AdapterMismatchError(f"{where}: the adapter has no modules; expected one or more")
    for module, shape in shapes.items():
        if module not in modules:
            raise AdapterMismatchError(f"{where}: the base has no module {module}; the adapter is for another base")
        if shape != modules[module]:
            raise AdapterMismatchError(
                f"{where}: {module} updates a weight {list(shape)}, the base's is {list(modules[module])}; "
                "the adapter is for another base"
            )


def check_extras(extras: Extras, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise AdapterMismatchError unless each extra tensor is one of those that there may be ({name: shape}), in its shape.

    A first size of -1 is any number of labels: what is for other labels is all there, for one number of them.
    """
    for name, array in extras.items():
        if name not in shapes:
            known = f"it takes {', '.join(shapes)}" if shapes else "it takes none"
            raise AdapterMismatchError(
                f"{where}: the adapter has {name} of its own, which is no head of the base; {known}"
            )
        want = shapes[name]
        if array.ndim != len(want) or any(w not in (-1, got) for w, got in zip(want, array.shape, strict=True)):
            raise AdapterMismatchError(
                f"{where}: its {name} is {list(array.shape)}, the base's is {list(want)}; the adapter is for a "
                "base with other labels, or of another size"
            )
    for_labels = [name for name, shape in shapes.items() if shape[0] == -1]
    counts = {name: len(extras[name]) for name in for_labels if name in extras}
    one_number = len(counts) == len(for_labels) and len(set(counts.values())) == 1
    if counts and not (one_number and 1 <= min(counts.values()) <= MAX_LABELS):
        raise AdapterMismatchError(
            f"{where}: its head needs {' and '.join(for_labels)} for one number of labels, at most {MAX_LABELS}, got "
            f"{counts}; save it again"
        )


def with_extras(adapter: Adapter, extras: Extras) -> Adapter:
    """`adapter` with these extra tensors in place of its own: itself, where neither has any."""
    return replace(adapter, extras=extras) if extras or adapter.extras else adapter


def _frozen(array: NDArray[np.float32]) -> NDArray[np.float32]:
    view = np.asarray(array, np.float32).view()
    view.flags.writeable = False
    return view


def initial_adapter(
    config: LoraConfig,
    modules: Mapping[str, tuple[int, int]],  # {name: (O, I)} of every linear module of the base
    generator: np.random.Generator,
) -> Adapter:
    """A new adapter that changes nothing: A uniform in +-1/sqrt(I) (PEFT's default), B zero."""
    pairs = {}
    for module in config.targets(modules):
        rows, columns = modules[module]
        bound = 1 / np.sqrt(columns)
        lora_A = generator.uniform(-bound, bound, (config.rank_of(module), columns)).astype(np.float32)
        pairs[module] = LoraPair(lora_A, np.zeros((rows, config.rank_of(module)), np.float32))
    return Adapter(config, pairs)
