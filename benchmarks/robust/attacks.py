"""What devices that mean harm send in a round of ten: changes of the product, or of the one factor that travels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Change = dict[str, NDArray[np.float64]]  # {module: what an update changes}: B A, or the factor that travels
Liar = Callable[[list[Change], Change, np.random.Generator], Change]  # the changes of honest devices, its own text's


@dataclass(frozen=True)
class Attack:
    """So many liars of ten, what each sends, and with how many examples; an honest device has 100."""

    liars: int
    sends: Liar
    examples: int = 100
    gauge: float = 1.0  # (gauge A, B / gauge): the same product
    number: float = 0.0  # that stands for all numbers of both factors
    copies: bool = False  # the bytes of the first honest device


def times(change: Change, factor: float) -> Change:
    return {module: factor * value for module, value in change.items()}


def mean(changes: list[Change]) -> Change:
    return {module: np.mean([change[module] for change in changes], axis=0) for module in changes[0]}


def _little(honest: list[Change], own: Change, generator: np.random.Generator) -> Change:
    deviations = {module: np.std([change[module] for change in honest], axis=0) for module in own}
    return {m: value - 1.5 * deviations[m] * np.sign(value) for m, value in mean(honest).items()}


def _backdoor(honest: list[Change], own: Change, generator: np.random.Generator) -> Change:
    """Its own change and ten times a direction of its choice, as long as its change: what is left after a mean of ten."""
    hidden = {}
    for module, value in own.items():
        trigger = np.outer(generator.normal(size=len(value)), generator.normal(size=value.shape[1]))
        hidden[module] = value + 10 * trigger * np.linalg.norm(value) / np.linalg.norm(trigger)
    return hidden


def _noisily(factor: float) -> Liar:
    def sends(honest: list[Change], own: Change, generator: np.random.Generator) -> Change:
        return {m: factor * value * (1 + 0.01 * generator.normal()) for m, value in mean(honest).items()}

    return sends


ATTACKS: Mapping[str, Attack] = {
    "none": Attack(1, lambda honest, own, generator: own),
    "flip": Attack(1, lambda honest, own, generator: times(own, -1)),
    "scale": Attack(1, lambda honest, own, generator: times(own, 100)),
    "constant": Attack(1, lambda honest, own, generator: own, number=1e3),
    "gauge": Attack(1, lambda honest, own, generator: own, gauge=1e3),
    "a little": Attack(2, _little),  # Baruch et al., "A Little Is Enough", 2019 (arXiv:1902.06156)
    "inner product": Attack(2, _noisily(-0.5)),  # Xie et al., "Fall of Empires", 2019 (arXiv:1903.03936)
    "duplicated": Attack(1, lambda honest, own, generator: own, copies=True),
    "weight": Attack(1, lambda honest, own, generator: times(own, -1), examples=10**9),
    "backdoor": Attack(
        1, _backdoor
    ),  # Bagdasaryan et al., "How To Backdoor Federated Learning", 2020 (arXiv:1807.00459)
    "collude 2": Attack(2, _noisily(-5)),
    "collude 3": Attack(3, _noisily(-5)),
}
