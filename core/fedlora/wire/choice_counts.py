"""How many questions of multiple choice were answered right: what the accuracy of a decoder is made of.

acc         argmax ll(c)                    ll the log-likelihood of a choice c after its prompt
acc_norm    argmax ll(c) / len(c)           the choice's length in characters
acc_bytes   argmax ll(c) / len(c in UTF-8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

_MOST = 1 << 31  # questions: what is more is nobody's word


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceCounts:
    """Over one device or over many: they add up."""

    questions: int = 0
    acc: int = 0
    acc_norm: int = 0
    acc_bytes: int = 0

    def __add__(self, other: ChoiceCounts) -> ChoiceCounts:
        return ChoiceCounts(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def scores(self) -> dict[str, float]:
        """{measure: share of the questions}; empty where there are none."""
        return {name: getattr(self, name) / self.questions for name in _NAMES[1:]} if self.questions else {}

    def told(self, prefix: str = "") -> dict[str, float]:
        """The counts as numbers by name, as a device sends them; none without questions."""
        return {f"{prefix}choices/{name}": float(getattr(self, name)) for name in _NAMES} if self.questions else {}

    @classmethod
    def read(cls, metrics: Mapping[str, float], prefix: str = "") -> ChoiceCounts | None:
        """What a device told; None where it told nothing, or what cannot be."""
        told = [metrics.get(f"{prefix}choices/{name}", 0.0) for name in _NAMES]
        if not all(0 <= count <= _MOST and count == int(count) for count in told):  # NaN is none of them
            return None
        counts = cls(**{name: int(count) for name, count in zip(_NAMES, told, strict=True)})
        return counts if counts.questions and max(told) == told[0] else None


_NAMES = tuple(field.name for field in fields(ChoiceCounts))
