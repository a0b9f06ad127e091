"""Whose sequences take part in a step, so that the engine's time is shared fairly by those who asked for them.

A step takes longer the more rows it reads, so one with many rows slows down everybody who is in the batch with it. Each who
asks has a virtual time: the part of every step's time that went to their tokens. Who is ahead of the one furthest behind by
more than a slack lets steps pass, its rows kept, until the others have caught up (start-time fair queueing; Goyal, Vin and
Cheng, SIGCOMM 1996). Who comes back after a while begins behind those who are here, by no more than a credit: a short
answer runs before those of who was busy meanwhile. Alone, or all alike, everybody takes part in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from fedlora_serve.batching.sequence import SequenceState

CREDIT_S = 0.5  # that who was away is behind at most
SLACK_S = CREDIT_S / 2  # that one may be ahead: equals are a little apart, and share their steps
_EVERY = 16  # of so many steps everybody takes part in one, whoever comes meanwhile
_LATELY_S = 30.0
_MAX_KNOWN = 4096  # who is remembered while away


class FairTime:
    """What each has had of the engine's time. One thread at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_shares: Collection[str] = ()
        self._shared_at = -math.inf  # when others than just before, or several, had rows
        self._had_s: dict[str, float] = {}  # {whose: virtual seconds}
        self._floor_s = 0.0  # what the one furthest behind has had; it never falls
        self._steps_apart = 0  # since the last one in which everybody took part

    def due(self, sequences: Sequence[SequenceState]) -> Collection[SequenceState]:
        """Those that take part in the next step."""
        shares = {sequence.request.share for sequence in sequences}
        begin_s = self._floor_s - CREDIT_S if self._had_s else 0.0  # the very first are all alike
        for share in shares:
            self._had_s[share] = max(self._had_s.get(share, begin_s), begin_s)
        least = min((self._had_s[share] for share in shares), default=0.0)
        self._floor_s = max(self._floor_s, least)
        if len(shares) > 1 or (self._last_shares and not shares.issubset(self._last_shares)):
            self._shared_at = self._clock()
        self._last_shares = shares or self._last_shares
        ahead = {share for share in shares if self._had_s[share] > least + SLACK_S}
        if not ahead or self._steps_apart + 1 >= _EVERY:
            self._steps_apart = 0
            return sequences
        self._steps_apart += 1
        return {sequence for sequence in sequences if sequence.request.share not in ahead}

    @property
    def is_shared(self) -> bool:
        """Whether somebody else has come lately, so that more may come: steps had better be short."""
        return self._clock() - self._shared_at < _LATELY_S

    def took(self, seconds: float, tokens: Mapping[str, int]) -> None:
        """A step took so long, and read so many tokens of each."""
        total = sum(tokens.values())
        for share, count in tokens.items():
            self._had_s[share] = self._had_s.get(share, 0.0) + seconds * count / total
        if len(self._had_s) > _MAX_KNOWN:
            self._forget(tokens)

    def _forget(self, here: Collection[str]) -> None:
        """Whoever is away and has had least: they begin with the credit again, and gain no more than they used of it."""
        most_first = sorted(self._had_s, key=self._had_s.__getitem__, reverse=True)
        kept = {*most_first[: _MAX_KNOWN // 2], *here}
        self._had_s = {share: had for share, had in self._had_s.items() if share in kept}
