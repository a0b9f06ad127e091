"""Rotary positions: the angle of each pair of features, and how a model stretches it to a longer context.

angle(position, i) = position * f_i,    f_i = theta^(-2 i / D)    (RoFormer, arXiv:2104.09864)

linear    f / factor                                              (position interpolation, arXiv:2306.15595)
llama3    f / factor for long waves, f for short ones, a blend between          (Llama 3, arXiv:2407.21783)
yarn      the same by a ramp over the features, and a larger magnitude          (YaRN, arXiv:2309.00071)
longrope  f / short_factor, and a larger magnitude, up to the original context  (LongRoPE, arXiv:2402.13753)
dynamic   f, up to the context of the model, beyond which it would change
"""

# D head size, P positions

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.family.sizes import number, switch

Frequencies = NDArray[np.float64]  # [D / 2], radians per position


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotation of one kind of layer."""

    frequencies: tuple[float, ...]  # [D / 2], radians per position
    magnitude: float = 1.0  # of the rotated vectors over the plain ones

    def table(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """magnitude * cos and magnitude * sin [P, D / 2] of every angle."""
        angles = np.outer(np.arange(positions), self.frequencies)
        cos, sin = (self.magnitude * wave(angles) for wave in (np.cos, np.sin))
        return cos.astype(np.float32), sin.astype(np.float32)


def read_rotary(
    scaling: Mapping[str, Any],  # rope_parameters or rope_scaling of a config.json
    theta: float,
    head_dim: int,
    context: int,  # max_position_embeddings
) -> tuple[Rotary, int]:
    """(the rotation, the number of positions that it holds for).

    Raises KeyError for a missing number, ValueError for a kind of scaling that is not known, or not supported.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if number(scaling.get("partial_rotary_factor") or 1) != 1:
        raise ValueError(f"partial_rotary_factor is {scaling['partial_rotary_factor']!r}; only 1 is supported")
    if kind not in _KINDS:
        raise ValueError(f"rope_type is {kind!r}; expected one of {', '.join(_KINDS)}")
    with np.errstate(all="ignore"):  # what is not finite is refused below
        plain = np.power(theta, -np.arange(0, head_dim, 2) / head_dim)
        frequencies, magnitude, positions = _KINDS[kind](plain, theta, scaling, context)
    if not (np.isfinite(frequencies).all() and math.isfinite(magnitude) and magnitude > 0):
        raise ValueError(f"the {kind} rotation is not finite; got {dict(scaling)!r:.200}")
    return Rotary(tuple(map(float, frequencies)), magnitude), positions


def _default(
    plain: Frequencies, theta: float, scaling: Mapping[str, Any], context: int
) -> tuple[Frequencies, float, int]:
    return plain, 1.0, context


def _linear(
    plain: Frequencies, theta: float, scaling: Mapping[str, Any], context: int
) -> tuple[Frequencies, float, int]:
    return plain / number(scaling["factor"]), 1.0, context


def _llama3(
    plain: Frequencies, theta: float, scaling: Mapping[str, Any], context: int
) -> tuple[Frequencies, float, int]:
    factor, low, high = (number(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    # Waves of the original context: 1 at the longest that is kept, 0 at the shortest that is stretched.
    waves = _original(scaling, context) * plain / (2 * math.pi)
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return kept * plain + (1 - kept) * plain / factor, 1.0, context


def _yarn(plain: Frequencies, theta: float, scaling: Mapping[str, Any], context: int) -> tuple[Frequencies, float, int]:
    original = _original(scaling, context)
    factor = _factor({"factor": scaling["factor"]}, context, original)
    pairs = len(plain)

    def feature(turns: float) -> float:
        """The pair that turns so often within the original context."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    begin, end = feature(number(scaling.get("beta_fast") or 32)), feature(number(scaling.get("beta_slow") or 1))
    if switch(scaling, "truncate", default=True):
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, 2 * pairs - 1)
    stretched = np.clip((np.arange(pairs) - begin) / max(end - begin, 1e-3), 0, 1)
    return stretched * plain / factor + (1 - stretched) * plain, _yarn_magnitude(scaling, factor), context


def _yarn_magnitude(scaling: Mapping[str, Any], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return number(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(number(scaling["mscale"])) / magnitude(number(scaling["mscale_all_dim"]))
    return magnitude(1.0)


def _original(scaling: Mapping[str, Any], context: int) -> float:
    """The positions that the model was trained on before it was stretched; transformers takes all where none are told."""
    return number(scaling.get("original_max_position_embeddings") or context)


def _factor(scaling: Mapping[str, Any], context: int, original: float) -> float:
    """How far the context is stretched: what is told, or else the ratio of the contexts."""
    told = scaling.get("factor")
    return context / original if told is None else number(told)


def _longrope(
    plain: Frequencies, theta: float, scaling: Mapping[str, Any], context: int
) -> tuple[Frequencies, float, int]:
    """Beyond the original context every angle would be another, also of the tokens before: it ends there."""
    original = int(_original(scaling, context))
    short = np.array([number(factor) for factor in scaling["short_factor"]], np.float64)
    if short.shape != plain.shape:
        raise ValueError(f"short_factor must have {len(plain)} numbers, got {short.size}")
    factor = _factor(scaling, context, original)
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / short, float(magnitude), min(context, original)


_KINDS: Mapping[str, Callable[[Frequencies, float, Mapping[str, Any], int], tuple[Frequencies, float, int]]] = {
    "default": _default, "linear": _linear, "dynamic": _default, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
}  # fmt: skip
