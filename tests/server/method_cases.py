"""What the tests of the methods share: small modules, devices that did what a round asked, and slow, dense references."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from fedlora.config.run import AggregationConfig, LoraSection, RunConfig, ServerConfig
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import first_components
from fedlora_server.aggregation.aggregation import Aggregation, Round, State
from fedlora_server.aggregation.robust import GeometricMedian, Median, MultiKrum, NormBound
from fedlora_server.aggregation.robust_rule import RobustRule
from fedlora_server.methods import find_method
from numpy.typing import NDArray

Dense = dict[str, NDArray[np.float64]]
Weighted = tuple[Adapter, int]

# Relative to the largest entry: sums of a few dozen float32 products.
TOLERANCE = {"float32": 2e-5}

TARGETS = ("q_proj", "up_proj", "down_proj")
SHAPES = {"layers.0.q_proj": (10, 8), "layers.0.up_proj": (14, 8), "layers.0.down_proj": (8, 14)}
CONFIGS = {
    "alpha is not the rank": LoraConfig(rank=3, alpha=12.0),
    "rsLoRA": LoraConfig(rank=4, alpha=2.0, use_rslora=True),
    "one module has its own rank and alpha": LoraConfig(
        rank=3, alpha=3.0, rank_pattern={"layers.0.up_proj": 5}, alpha_pattern={"layers.0.down_proj": 0.5}
    ),
}
SETTINGS = AggregationConfig()
HEAD = {"classifier.weight": np.full((3, 8), 0.5, np.float32), "classifier.bias": np.zeros(3, np.float32)}


@dataclass(frozen=True)
class Case:
    """One method over the small modules."""

    method: str
    lora: LoraConfig
    settings: AggregationConfig = SETTINGS
    has_head: bool = False  # extra tensors beside A and B

    @cached_property
    def aggregation(self) -> Aggregation:
        section = LoraSection(rank=self.lora.rank)
        server = ServerConfig(method=self.method)
        config = RunConfig(lora=section, server=server, aggregation=self.settings)
        first = initial_adapter(replace(self.lora, target_modules=TARGETS), SHAPES, np.random.default_rng(9))
        return Aggregation(config, with_extras(first, HEAD) if self.has_head else first)

    def round(self, number: int = 1, state: State | None = None) -> Round:
        aggregation = self.aggregation
        return aggregation.round(state or aggregation.start(), number)

    def later(self) -> State:
        """The state after a first round, in which nothing is zero any more."""
        return self.played(self.round(), devices(self.round(), 3, seed=50))

    def before(self, number: int) -> State | None:
        """What round 1 or 2 begins with."""
        return None if number == 1 else self.later()

    @staticmethod
    def played(this: Round, updates: Sequence[Weighted]) -> State:
        for adapter, num_examples in updates:
            this.add(adapter, num_examples)
        return this.result()

    def dense(self, this: Round, updates: Sequence[Weighted]) -> Dense:
        """What the round commits from these updates, dense."""
        return dense(self.aggregation.committed(self.played(this, updates)))


def random_pair(pair: LoraPair, trains: str, generator: np.random.Generator) -> LoraPair:
    """The pair with what trains of it replaced by random numbers."""
    new_A, new_B = (generator.normal(size=array.shape).astype(np.float32) for array in (pair.lora_A, pair.lora_B))
    return LoraPair(new_A if "A" in trains else pair.lora_A, new_B if "B" in trains else pair.lora_B)


def device(this: Round, seed: int, rank: int = 1000) -> Adapter:
    """What a device makes of a round: the factors that it trains and sends are random, of its own rank."""
    generator, down = np.random.default_rng(seed), first_components(this.down.adapter, rank)
    pairs = {module: random_pair(pair, this.task.sends, generator) for module, pair in down.pairs.items()}
    extras = {name: generator.normal(size=v.shape).astype(np.float32) for name, v in down.extras.items()}
    return Adapter(down.config, pairs, extras=extras)


def devices(this: Round, count: int = 5, *, seed: int = 0, ranks: Sequence[int] = (1000,)) -> list[Weighted]:
    weights, own = itertools.cycle((7, 20, 1, 13)), itertools.cycle(ranks)
    return [(device(this, seed + k, next(own)), next(weights)) for k in range(count)]


def bits(state: State) -> bytes:
    """All that a round carries on, as it lies in memory."""
    adapters = [adapter for adapter in (state.now.adapter, state.now.frozen) if adapter]
    arrays = [array for adapter in adapters for p in adapter.pairs.values() for array in (p.lora_A, p.lora_B)]
    arrays += list(state.extras.values())
    return b"".join(array.tobytes() for array in (*arrays, *(state.moments[key] for key in sorted(state.moments))))


def dense(adapter: Adapter) -> Dense:
    """gamma B A, module by module, in float64."""
    return {
        module: adapter.config.scaling_of(module) * pair.lora_B.astype(np.float64) @ pair.lora_A.astype(np.float64)
        for module, pair in adapter.pairs.items()
    }


def dense_mean(updates: Sequence[Weighted]) -> Dense:
    total = sum(weight for _, weight in updates)
    return {m: np.sum([weight / total * dense(adapter)[m] for adapter, weight in updates], axis=0) for m in SHAPES}


def with_side(this: Round, result: Dense) -> Dense:
    """`result` and what stood frozen beside the trained adapter."""
    frozen = {} if this.down.frozen is None else dense(this.down.frozen)
    return {module: value + frozen.get(module, 0) for module, value in result.items()}


def best(matrix: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    result: NDArray[np.float64] = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return result


def mean_factors(updates: Sequence[Weighted], module: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    total = sum(weight for _, weight in updates)
    A = np.sum([w / total * adapter.pairs[module].lora_A.astype(np.float64) for adapter, w in updates], axis=0)
    B = np.sum([w / total * adapter.pairs[module].lora_B.astype(np.float64) for adapter, w in updates], axis=0)
    return A, B


Reference = Callable[[Case, Round, Sequence[Weighted]], Dense]


def exact(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    return with_side(this, dense_mean(updates))


def fedavg(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    result = {}
    for module in SHAPES:
        A, B = mean_factors(updates, module)
        result[module] = case.lora.scaling_of(module) * B @ A
    return result


def svd(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    return {module: best(mean, case.lora.rank_of(module)) for module, mean in dense_mean(updates).items()}


def hetlora(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    """Padded with zeros, weighted by the norm of the whole update."""
    result = {}
    norms = [np.sqrt(sum(np.sum(matrix**2) for matrix in dense(adapter).values())) for adapter, _ in updates]
    shares = [norm * weight for norm, (_, weight) in zip(norms, updates, strict=True)]
    for module, (rows, columns) in SHAPES.items():
        rank = case.lora.rank_of(module)
        A, B = np.zeros((rank, columns)), np.zeros((rows, rank))
        for share, (adapter, _) in zip(shares, updates, strict=True):
            pair = adapter.pairs[module]
            A[: pair.rank] += share / sum(shares) * pair.lora_A
            B[:, : pair.rank] += share / sum(shares) * pair.lora_B
        result[module] = case.lora.scaling_of(module) * B @ A
    return result


def raflora(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    """Slot by component, over the devices that hold it."""
    result = {}
    for module, (rows, columns) in SHAPES.items():
        total = np.zeros((rows, columns))
        for component in range(case.lora.rank_of(module)):
            holders = [(a.pairs[module], w) for a, w in updates if a.pairs[module].rank > component]
            for pair, weight in holders:
                outer = np.outer(pair.lora_B[:, component].astype(np.float64), pair.lora_A[component])
                total += weight / sum(w for _, w in holders) * outer
        result[module] = best(case.lora.scaling_of(module) * total, case.lora.rank_of(module))
    return result


def fedrot(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    """The rotation by the polar factor of the overlap, from an eigendecomposition of its square."""
    turned = []
    for adapter, weight in updates:
        pairs = {}
        for module, pair in adapter.pairs.items():
            onto = this.down.adapter.pairs[module]
            B, A = pair.lora_B.astype(np.float64), pair.lora_A.astype(np.float64)
            overlap = B.T @ onto.lora_B + A @ onto.lora_A.T
            values, vectors = np.linalg.eigh(overlap.T @ overlap)
            Q = overlap @ (vectors / np.sqrt(values)) @ vectors.T
            pairs[module] = LoraPair((Q.T @ A).astype(np.float32), (B @ Q).astype(np.float32))
        turned.append((Adapter(adapter.config, pairs), weight))
    return fedavg(case, this, turned)


def lorafair(case: Case, this: Round, updates: Sequence[Weighted]) -> Dense:
    """The regularised least squares of the correction, row by row, as one stacked system."""
    result, means = {}, dense_mean(updates)
    for module in SHAPES:
        A, B = mean_factors(updates, module)
        scaling = case.lora.scaling_of(module)
        held = case.settings.lorafair_lambda * np.trace(A @ A.T) / len(A)
        system = np.concatenate([A.T, np.sqrt(held) * np.eye(len(A))])  # [I + R, R]
        missing = np.concatenate([(means[module] / scaling - B @ A).T, np.zeros((len(A), len(B)))])
        correction = np.linalg.lstsq(system, missing, rcond=None)[0].T
        result[module] = scaling * (B + correction) @ A
    return result


REFERENCES: Mapping[str, Reference] = {
    "fedavg": fedavg, "ffa": exact, "rolora": exact, "fedsvd": exact, "svd": svd, "stack": exact, "fedex": exact,
    "hetlora": hetlora, "raflora": raflora, "fedsa": fedavg, "fedrot": fedrot, "lorafair": lorafair,
}  # fmt: skip
# Those that fedlora brings, whatever else is installed.
METHODS = {name: find_method(name) for name in REFERENCES}
METHOD_NAMES = sorted(METHODS)
WEIGHING = {"norm-bound": NormBound, "multi-krum": MultiKrum, "geometric-median": GeometricMedian}
ROBUST: dict[str, type[RobustRule]] = {**WEIGHING, "median": Median}


def assert_close(got: Dense, expected: Dense) -> None:
    assert got.keys() == expected.keys()
    for module, value in expected.items():
        atol = TOLERANCE["float32"] * max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(got[module], value, rtol=0, atol=atol, err_msg=module)


def in_another_gauge(adapter: Adapter, generator: np.random.Generator, *, stretch: bool = True) -> Adapter:
    """(B M, M^-1 A): the same product from other factors. Without `stretch`, M is a rotation."""
    pairs = {}
    for module, pair in adapter.pairs.items():
        # An orthogonal matrix with its columns stretched by up to two: far from the identity, and well conditioned.
        M, _ = np.linalg.qr(generator.normal(size=(pair.rank, pair.rank)))
        if stretch:
            M = M * generator.uniform(0.5, 2, pair.rank)
        pairs[module] = LoraPair(
            (np.linalg.inv(M) @ pair.lora_A).astype(np.float32), (pair.lora_B @ M).astype(np.float32)
        )
    return Adapter(adapter.config, pairs)
