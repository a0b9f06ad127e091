"""Adapters in torch: C of them side by side, what of them trains with a place for its gradient.

Beside a single one another may stand that no training changes: its frozen adapter.
"""

# C adapters, I in features, O out features, R rank (of a stack: the largest one), F rank of the frozen adapter (or 0)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras, LoraPair
from fedlora.lora.kinds import dora, heads_in, ia3, own_in, vera
from fedlora.lora.kinds.virtual import WORD as VIRTUAL
from fedlora.wire.task import FactorSet
from torch import Tensor

from fedlora_client.layers.scale import Magnitude, ModuleScale, ScaleOfModule
from fedlora_client.layers.virtual_tokens import Virtual, virtual_of


@dataclass(frozen=True, slots=True)
class FrozenFactors:
    """What of a module stands frozen beside its adapter, float32."""

    lora_A: Tensor  # [F, I]
    scaled_B: Tensor  # [O, F], times the frozen adapter's own scaling


@dataclass(frozen=True, slots=True)
class ModuleLora:
    """One module's adapters, float32, and what is added up for them."""

    lora_A: Tensor  # [C, R, I]
    lora_B: Tensor  # [C, O, R]
    scaling: Tensor  # [C, 1, 1]
    grad_A: Tensor | None  # [C, R, I]; None: it is frozen
    grad_B: Tensor | None  # [C, O, R]
    frozen: FrozenFactors | None = None  # C = 1

    @property
    def count(self) -> int:
        """C"""
        return self.lora_A.shape[0]

    @property
    def trained_rank(self) -> int:
        """R"""
        return self.lora_A.shape[1]

    @property
    def rank(self) -> int:
        """R + F"""
        return self.trained_rank + (len(self.frozen.lora_A) if self.frozen else 0)

    @property
    def trains_A(self) -> bool:  # noqa: N802
        return self.grad_A is not None

    @property
    def trains_B(self) -> bool:  # noqa: N802
        return self.grad_B is not None

    def add_A(self, gradient: Tensor) -> None:  # noqa: N802
        """Add the gradient [R, I] of one adapter's A."""
        assert self.grad_A is not None
        self.grad_A[0] += gradient

    def add_B(self, gradient: Tensor) -> None:  # noqa: N802
        """Add the gradient [O, R] of one adapter's B."""
        assert self.grad_B is not None
        self.grad_B[0] += gradient

    def put_rows(self, out: Tensor) -> None:
        """out [R + F, I] = A of one adapter, then that of its frozen adapter"""
        out[: self.trained_rank] = self.lora_A[0]
        if self.frozen:
            out[self.trained_rank :] = self.frozen.lora_A

    def put_columns(self, out: Tensor) -> None:
        """out [O, R + F] = gamma B of one adapter, then that of its frozen adapter"""
        torch.mul(self.lora_B[0], self.scaling[0], out=out[:, : self.trained_rank])
        if self.frozen:
            out[:, self.trained_rank :] = self.frozen.scaled_B

    def all_rows(self) -> Tensor:
        """[C, R + F, I]"""
        return torch.cat((self.lora_A, self.frozen.lora_A[None]), 1) if self.frozen else self.lora_A


@dataclass(frozen=True, slots=True)
class SharedFactors(ModuleLora):
    """One module's part of A and B that all share and nobody trains: A' = diag(d) A, B' = diag(b) B (VeRA), C = 1."""

    d: Tensor = field(kw_only=True)  # [R]
    b: Tensor = field(kw_only=True)  # [O]
    grad_d: Tensor = field(kw_only=True)
    grad_b: Tensor = field(kw_only=True)

    @property
    def trains_A(self) -> bool:  # noqa: N802
        return True

    @property
    def trains_B(self) -> bool:  # noqa: N802
        return True

    def add_A(self, gradient: Tensor) -> None:  # noqa: N802
        self.grad_d.add_((gradient * self.lora_A[0]).sum(1))

    def add_B(self, gradient: Tensor) -> None:  # noqa: N802
        self.grad_b.add_((gradient * self.lora_B[0]).sum(1))

    def put_rows(self, out: Tensor) -> None:
        torch.mul(self.lora_A[0], self.d[:, None], out=out)

    def put_columns(self, out: Tensor) -> None:
        torch.mul(self.lora_B[0], self.b[:, None], out=out)

    def all_rows(self) -> Tensor:
        return self.lora_A * self.d[:, None]


@dataclass(frozen=True, slots=True)
class ExtraTensor:
    """One extra tensor of C adapters, float32, and what is added up for it."""

    values: Tensor  # [C, ...]
    gradients: Tensor  # [C, ...]


class Flat:
    """Tensors and their gradients as views of two flat ones, for whoever treats all numbers alike."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device, *, trains: bool = True) -> None:
        """What does not train has no gradients."""
        sizes = [math.prod(shape) for shape in shapes]
        self.value, self.gradient = (torch.zeros(n, device=device) for n in (sum(sizes), sum(sizes) if trains else 0))
        self.values, self.gradients = (
            [part.view(shape) for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)]
            if len(flat)
            else []
            for flat in (self.value, self.gradient)
        )


class LoraTensors:
    """C adapters as torch tensors that own their memory.

    Adapters of a stack may differ in rank and alpha, not in their modules. A smaller one is padded with zeros, which stay
    zero: a row of A meets a column of B, and the gradient of each is a multiple of the other.
    """

    def __init__(
        self, adapters: Sequence[Adapter], device: torch.device, trains: FactorSet = "AB", frozen: Adapter | None = None,
        model: ModelShape | None = None,
    ) -> None:  # fmt: skip
        """Of A and B those in `trains` train, and the extra tensors do, which the adapters of a stack have in one shape.

        `frozen`, an adapter of the same modules, goes with one adapter only; VeRA's and a prefix are made for a `model`.
        """
        self.configs = tuple(adapter.config for adapter in adapters)
        self._ranks = [{name: pair.rank for name, pair in adapter.pairs.items()} for adapter in adapters]
        if any(adapter.pairs.keys() != adapters[0].pairs.keys() for adapter in adapters):
            raise AssertionError("the adapters of one stack must have the same modules")
        shapes = {name: _shapes([adapter.pairs[name] for adapter in adapters]) for name in adapters[0].pairs}
        self._flats = {
            f"lora_{factor}": Flat([pair[kind] for pair in shapes.values()], device, trains=factor in trains)
            for kind, factor in enumerate("AB")
        }
        flat_A, flat_B = self._flats.values()
        self.modules: dict[str, ModuleLora] = {}
        for number, name in enumerate(shapes):
            lora_A, lora_B = flat_A.values[number], flat_B.values[number]
            for which, pair in enumerate(adapter.pairs[name] for adapter in adapters):
                lora_A[which, : pair.rank] = torch.tensor(pair.lora_A)
                lora_B[which, :, : pair.rank] = torch.tensor(pair.lora_B)
            scaling = torch.tensor([config.scaling_of(name) for config in self.configs], device=device)[:, None, None]
            grad_A, grad_B = (flat.gradients[number] if flat.gradients else None for flat in (flat_A, flat_B))
            self.modules[name] = ModuleLora(lora_A, lora_B, scaling, grad_A, grad_B, _frozen_of(frozen, name, device))
        self.extras = self._made_extras("head", [heads_in(adapter) for adapter in adapters], device)  # of a head
        self.own = self._made_extras("own", [own_in(adapter) for adapter in adapters], device)  # of the adapter's kind
        self.scales = _scales_of(self.own)
        self.virtual: Virtual | None = None  # tokens before each text
        if model is not None and (tensor := self.own.get(VIRTUAL)):
            self.virtual = virtual_of(tensor.values[0], tensor.gradients[0], self.configs[0].method, model)
        if model is not None:
            self.modules |= _shared_of(adapters[0], self.own, model, device)
        assert len(adapters) == 1 or (frozen is None and not self.own)

    def _made_extras(self, what: str, extras: Sequence[Extras], device: torch.device) -> dict[str, ExtraTensor]:
        first = extras[0]
        if any({n: v.shape for n, v in other.items()} != {n: v.shape for n, v in first.items()} for other in extras):
            raise AssertionError("the adapters of one stack must have the same extra tensors")
        if not first:
            return {}
        flat = self._flats[what] = Flat([(len(extras), *array.shape) for array in first.values()], device)
        for name, values in zip(first, flat.values, strict=True):
            values.copy_(torch.from_numpy(np.stack([other[name] for other in extras])))
        return {n: ExtraTensor(*parts) for n, *parts in zip(first, flat.values, flat.gradients, strict=True)}

    @property
    def flats(self) -> dict[str, Flat]:
        """Whatever trains, by name: all A ("lora_A"), all B ("lora_B"), a head ("head"), what else its kind has ("own")."""
        return {name: flat for name, flat in self._flats.items() if flat.gradients}

    def values(self, number: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        """{module: (lora_A [R, I], lora_B [O, R])} of one adapter, as views."""
        return self._views(number, lambda factors: (factors.lora_A, factors.lora_B))

    def gradients(self, number: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        """What `values` gives, of the gradients; 0 for what is frozen."""

        def of(gradient: Tensor | None, value: Tensor) -> Tensor:
            return torch.zeros_like(value) if gradient is None else gradient

        return self._views(number, lambda f: (of(f.grad_A, f.lora_A), of(f.grad_B, f.lora_B)))

    def adapter(self, number: int = 0) -> Adapter:
        """The present values of one adapter, copied, without its frozen adapter."""
        pairs = {
            name: LoraPair(lora_A.cpu().numpy().copy(), lora_B.cpu().numpy().copy())
            for name, (lora_A, lora_B) in self.values(number).items()
        }
        trained = self.own | self.extras
        extras = {name: extra.values[number].cpu().numpy().copy() for name, extra in trained.items()}
        return Adapter(self.configs[number], pairs, extras=extras)

    def _views(
        self, number: int, which: Callable[[ModuleLora], tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        views = {}
        for name, rank in self._ranks[number].items():
            lora_A, lora_B = which(self.modules[name])
            views[name] = lora_A[number, :rank], lora_B[number, :, :rank]
        return views


def _scales_of(own: Mapping[str, ExtraTensor]) -> dict[str, ScaleOfModule]:
    """{module: what scales it}, of a single adapter of IA3, [1, O, 1] or [1, 1, I], or DoRA, [1, O]."""
    scales: dict[str, ScaleOfModule] = {}
    for name, tensor in own.items():
        module, _, word = name.rpartition(".")
        values, gradients = tensor.values.view(-1), tensor.gradients.view(-1)
        if word == ia3.WORD:
            scales[module] = ModuleScale("output" if tensor.values.shape[2] == 1 else "input", values, gradients)
        elif word == dora.WORD:
            scales[module] = Magnitude(values, gradients)
    return scales


def _shared_of(
    adapter: Adapter, own: Mapping[str, ExtraTensor], model: ModelShape, device: torch.device
) -> dict[str, ModuleLora]:
    """{module: its part of the shared A and B} of a single adapter of VeRA; nothing of another kind."""
    modules = [name.rpartition(".")[0] for name in own if name.endswith(f".{vera.D}")]
    if not modules:
        return {}
    lora_A, lora_B = (torch.from_numpy(part).to(device) for part in vera.projections_of(adapter, model))
    shapes, one, found = model.linear_modules(), torch.ones((1, 1, 1), device=device), dict[str, ModuleLora]()
    for module in modules:
        rows, columns = shapes[module]
        d, b = own[f"{module}.{vera.D}"], own[f"{module}.{vera.B}"]
        found[module] = SharedFactors(
            lora_A[None, :, :columns], lora_B[None, :rows], one, None, None,
            d=d.values[0], b=b.values[0], grad_d=d.gradients[0], grad_b=b.gradients[0],
        )  # fmt: skip
    return found


def _frozen_of(frozen: Adapter | None, module: str, device: torch.device) -> FrozenFactors | None:
    if frozen is None:
        return None
    pair, scaling = frozen.pairs[module], np.float32(frozen.config.scaling_of(module))
    return FrozenFactors(*(torch.tensor(part, device=device) for part in (pair.lora_A, pair.lora_B * scaling)))


def _shapes(pairs: Sequence[LoraPair]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of the stacked A [C, R, I] and B [C, O, R] of one module."""
    rank, (rows, columns) = max(pair.rank for pair in pairs), pairs[0].shape
    return (len(pairs), rank, columns), (len(pairs), rows, rank)
