"""The section `aggregation` of a run's configuration: what a method may be combined with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedlora.config.sections import require
from fedlora.lora.config import MAX_RANK

Weights = Literal["examples", "uniform"]
Optimizer = Literal["none", "fedavgm", "fedadam", "fedyogi"]
Robust = Literal["none", "norm-bound", "multi-krum", "geometric-median", "median"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """How the updates of a round count, and what is done to their mean."""

    weights: str = "examples"  # of a device: its number of training windows, or uniform: 1
    min_rank: int = 0  # the smallest rank that a device may train; 0: all train lora.rank
    max_rank: int = 64  # of the adapter that `stack` and `fedex` commit
    lorafair_lambda: float = 0.01  # how strongly `lorafair` holds back its correction
    optimizer: str = "none"  # of the server: none, fedavgm, fedadam or fedyogi
    lr: float = 1.0  # of that optimizer, as are the next three
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    robust: str = "none"  # or norm-bound, multi-krum, geometric-median, median
    byzantine_share: float = 0.2  # of the devices that multi-krum takes to be liars, rounded up
    norm_bound: float = 3.0  # times the median of the norms, above which norm-bound leaves an update out

    def __post_init__(self) -> None:
        choices = {"weights": Weights, "optimizer": Optimizer, "robust": Robust}
        for name, kind in choices.items():
            got, known = getattr(self, name), get_args(kind)
            require(got in known, f"aggregation.{name} must be one of {', '.join(known)}", got)
        require(self.min_rank >= 0, "aggregation.min_rank must be 0 (none) or more", self.min_rank)
        require(1 <= self.max_rank <= MAX_RANK, f"aggregation.max_rank must be from 1 to {MAX_RANK}", self.max_rank)
        require(1 <= self.norm_bound < math.inf, "aggregation.norm_bound must be at least 1", self.norm_bound)
        for name in ("lorafair_lambda", "lr", "tau"):
            got = getattr(self, name)
            require(0 < got < math.inf, f"aggregation.{name} must be positive and finite", got)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"aggregation.{name} must be from 0 to below 1", getattr(self, name))
        require(0 <= self.byzantine_share < 0.5, "aggregation.byzantine_share must be below 0.5", self.byzantine_share)
