"""The sections of a run's configuration that its server alone needs: how rounds run, and what becomes of their updates.

Each is validated when it is made; a message gives the value that came and those that it takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedlora.config.require import require
from fedlora.lora.config import MAX_RANK
from fedlora.wire.codec import CODECS

Weights = Literal["examples", "uniform"]
Mode = Literal["sync", "async"]
Optimizer = Literal["none", "fedavgm", "fedadam", "fedyogi"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server runs its rounds."""

    rounds: int = 5
    method: str = "svd"  # an entry point of the group fedlora.methods
    devices_per_round: int = 0  # 0: all that are connected
    min_devices: int = 1  # connected before the first round, and sound replies in every round
    round_timeout_s: float = 600.0
    evaluate: bool = True  # held-out loss on every device after each round ...
    evaluate_every: int = 1  # ... of so many; before the first and after the last in any case
    codec: str = "f32"
    resume: bool = False  # go on with the run that `output` holds
    mode: str = "sync"  # a round waits for its devices; async: one is committed every `buffer_size` updates (FedBuff)
    over_selection: float = 1.0  # sync: so many times devices_per_round are asked, and the first sound answers count
    buffer_size: int = 4  # async: the sound updates of a commit
    staleness_exponent: float = 0.5  # async: an update counts 1 / (1 + commits since its adapter) ^ this
    max_staleness: int = 20  # async: an update on an adapter of more commits ago is left out
    max_share: float = 0.5  # async: of a commit's updates, what one device may give while another could give one

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "server.rounds must be at least 1", self.rounds)
        require(self.devices_per_round >= 0, "server.devices_per_round must be 0 (all) or more", self.devices_per_round)
        require(self.min_devices >= 1, "server.min_devices must be at least 1", self.min_devices)
        require(self.round_timeout_s > 0, "server.round_timeout_s must be positive", self.round_timeout_s)
        require(self.evaluate_every >= 1, "server.evaluate_every must be at least 1", self.evaluate_every)
        require(self.codec in CODECS, f"server.codec must be one of {', '.join(CODECS)}", self.codec)
        cap = self.devices_per_round or self.min_devices
        require(
            self.min_devices <= cap, f"server.min_devices must be at most devices_per_round ({cap})", self.min_devices
        )
        self._check_mode()

    def _check_mode(self) -> None:
        """How a round is closed."""
        known = get_args(Mode)
        require(self.mode in known, f"server.mode must be one of {', '.join(known)}", self.mode)
        got = self.over_selection
        require(1 <= got <= 100, "server.over_selection must be from 1 (nobody beyond) to 100", got)
        if got > 1:
            require(self.mode == "sync", "server.over_selection must be 1 where server.mode is async", got)
            require(
                self.devices_per_round > 0, "server.over_selection must be 1 where devices_per_round is 0 (all)", got
            )
        require(self.buffer_size >= 1, "server.buffer_size must be at least 1", self.buffer_size)
        got = self.staleness_exponent
        require(0 <= got <= 10, "server.staleness_exponent must be from 0 (all count alike) to 10", got)
        require(0 <= self.max_staleness <= 1000, "server.max_staleness must be from 0 to 1000", self.max_staleness)
        got = self.max_share
        require(0 < got <= 1, "server.max_share must be above 0 and at most 1 (one device may give all)", got)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """How the updates of a round count, and what is done to their mean."""

    weights: str = "examples"  # of a device: its number of training windows, or uniform: 1
    max_weight: float = 4.0  # times the median of the round, which is the most that a device may weigh; 0: no bound
    fixed_signs: bool = True  # of components that an SVD made: the largest entry of a row of A is positive
    min_rank: int = 0  # the smallest rank that a device may train; 0: all train lora.rank
    max_rank: int = 64  # of the adapter that `stack` and `fedex` commit
    lorafair_lambda: float = 0.01  # how strongly `lorafair` holds back its correction
    optimizer: str = "none"  # of the server: none, fedavgm, fedadam or fedyogi
    lr: float = 1.0  # of that optimizer, as are the next three
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    robust: str = "auto"  # norm-bound where the method takes it; none; or an entry point of the group fedlora.robust
    byzantine_share: float = 0.2  # of the devices that multi-krum takes to be liars, rounded up
    norm_bound: float = 3.0  # times the median of the norms, above which norm-bound leaves an update out

    def __post_init__(self) -> None:
        choices = {"weights": Weights, "optimizer": Optimizer}
        for name, kind in choices.items():
            got, known = getattr(self, name), get_args(kind)
            require(got in known, f"aggregation.{name} must be one of {', '.join(known)}", got)
        require(self.min_rank >= 0, "aggregation.min_rank must be 0 (none) or more", self.min_rank)
        require(1 <= self.max_rank <= MAX_RANK, f"aggregation.max_rank must be from 1 to {MAX_RANK}", self.max_rank)
        got = self.max_weight
        require(got == 0 or 1 <= got < math.inf, "aggregation.max_weight must be 0 (no bound) or at least 1", got)
        require(1 <= self.norm_bound < math.inf, "aggregation.norm_bound must be at least 1", self.norm_bound)
        for name in ("lorafair_lambda", "lr", "tau"):
            got = getattr(self, name)
            require(0 < got < math.inf, f"aggregation.{name} must be positive and finite", got)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"aggregation.{name} must be from 0 to below 1", getattr(self, name))
        require(0 <= self.byzantine_share < 0.5, "aggregation.byzantine_share must be below 0.5", self.byzantine_share)
