"""The ways to combine adapters, named as PEFT's `add_weighted_adapter` has them (peft 0.21), and what each takes.

linear            A = sum of sign(w) sqrt|w s| A_t, B = sum of sqrt|w s| B_t, with the scaling s of each: the factors are
                  added, a rough approximation of the weighted sum of products, of equal ranks
cat               the weighted sum of products, exactly: factors side by side, ranks added
svd               the best approximation of that sum with a given rank
ties              TIES-Merging (Yadav et al., 2023, arXiv:2306.01708) of the factors: the smallest entries pruned, signs
                  elected, and the mean of the entries that have the elected sign
dare-linear       DARE (Yu et al., 2023, arXiv:2311.03099): entries dropped at random, the others divided by the density
dare-ties         the same, with elected signs
magnitude-prune   the smallest entries pruned
...-svd           of the products [O, I] in place of the factors, and the best approximation of the result
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedlora.errors import ConfigError
from fedlora.lora.config import MAX_RANK

Way = Literal[
    "linear", "cat", "svd", "ties", "ties-svd", "dare-linear", "dare-linear-svd", "dare-ties", "dare-ties-svd",
    "magnitude-prune", "magnitude-prune-svd",
]  # fmt: skip
SignMethod = Literal["total", "frequency"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """How adapters are combined; a negative weight takes one away (task arithmetic)."""

    weights: tuple[float, ...]
    how: Way = "svd"
    density: float | None = None  # the part of the entries that stays, of ways that prune
    majority_sign_method: SignMethod | None = None  # by the sum of the entries or of their signs; None: total
    svd_rank: int | None = None  # None: the largest of the adapters'
    seed: int | None = None  # of what dare drops; None: 0

    def __post_init__(self) -> None:
        for weight in self.weights:
            if not math.isfinite(weight):
                raise ConfigError(f"--weights: a weight must be a finite number, got {weight!r}")
        if not self.weights or not any(self.weights):
            raise ConfigError("--weights: expected a weight for each adapter, and one of them other than 0")
        self._check_takes("density", self.prunes is not None, "prunes no entries", "ties, dare-* or magnitude-prune")
        self._check_takes("majority_sign_method", self.elects_signs, "elects no signs", "ties or dare-ties")
        self._check_takes("svd_rank", self.is_truncated, "cuts no rank", "svd, or one that ends in -svd")
        self._check_takes("seed", self.prunes == "random", "draws nothing at random", "dare-linear or dare-ties")
        if self.prunes and self.density is None:
            raise ConfigError(
                f"--how {self.how} prunes; give --density, the part of the entries that stays, such as 0.5"
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"--density: expected a number above 0 and at most 1, got {self.density!r}")
        if self.svd_rank is not None and not 1 <= self.svd_rank <= MAX_RANK:
            raise ConfigError(f"--svd-rank: a rank must be from 1 to {MAX_RANK}, got {self.svd_rank}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"--seed: expected 0 or more, got {self.seed}")

    @property
    def is_truncated(self) -> bool:
        """Whether it is the products that are combined, and approximated with a rank."""
        return self.how.endswith("svd")

    @property
    def makes_products(self) -> bool:
        """Whether the products [O, I] are made, and not told by their factors alone."""
        return self.is_truncated and self.how != "svd"

    @property
    def prunes(self) -> Literal["magnitude", "random"] | None:
        if self.how.startswith(("ties", "magnitude")):
            return "magnitude"
        return "random" if self.how.startswith("dare") else None

    @property
    def elects_signs(self) -> bool:
        return "ties" in self.how

    def __str__(self) -> str:
        told: list[str] = [self.how]
        told += [f"density {self.density:g}"] if self.density is not None else []
        told += [f"majority sign by {self.majority_sign_method or 'total'}"] if self.elects_signs else []
        told += [f"seed {self.seed or 0}"] if self.prunes == "random" else []
        return ", ".join(told)

    def _check_takes(self, name: str, takes: bool, why: str, instead: str) -> None:
        if getattr(self, name) is not None and not takes:
            option = "--majority-sign" if name == "majority_sign_method" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: {self.how} {why}; leave it out, or take --how {instead}")
