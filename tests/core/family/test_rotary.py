"""Rotary positions against their formulas, written out one pair of features at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fedlora.family.rotary import Rotary, read_rotary

THETA, SIZE, CONTEXT = 10000.0, 64, 4096
PLAIN = [THETA ** (-2 * i / SIZE) for i in range(SIZE // 2)]


def read(**scaling: Any) -> tuple[Rotary, int]:
    return read_rotary(scaling, THETA, SIZE, CONTEXT)


def test_without_scaling_each_pair_turns_by_its_power_of_theta() -> None:
    rotary, positions = read()
    assert rotary.frequencies == pytest.approx(PLAIN)
    assert (rotary.magnitude, positions) == (1.0, CONTEXT)


def test_linear_scaling_divides_every_angle() -> None:
    assert read(rope_type="linear", factor=4.0)[0].frequencies == pytest.approx([f / 4 for f in PLAIN])


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    rotary, _ = read(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024
    )
    blended = 0
    for frequency, got in zip(PLAIN, rotary.frequencies, strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < 1024 / 4:
            expected = frequency
        elif wavelength > 1024 / 1:
            expected = frequency / 8
        else:
            blended += 1
            smooth = (1024 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 8 + smooth * frequency
        assert got == pytest.approx(expected)
    assert blended


def test_yarn_stretches_slow_pairs_and_makes_the_vectors_longer() -> None:
    rotary, positions = read(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)
    fast, slow = (math.log(1024 / (turns * 2 * math.pi)) / (2 * math.log(THETA)) * SIZE for turns in (32, 1))
    for i, (frequency, got) in enumerate(zip(PLAIN, rotary.frequencies, strict=True)):
        ramp = min(1.0, max(0.0, (i - math.floor(fast)) / (math.ceil(slow) - math.floor(fast))))
        assert got == pytest.approx(frequency * (1 - ramp) + frequency / 4 * ramp)
    assert rotary.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    assert positions == CONTEXT


@pytest.mark.parametrize(
    ("extra", "magnitude"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
    ],
)
def test_yarn_takes_a_magnitude_that_the_model_names(extra: dict[str, float], magnitude: float) -> None:
    assert read(rope_type="yarn", factor=4.0, **extra)[0].magnitude == pytest.approx(magnitude)


def test_longrope_ends_at_the_original_context_and_uses_its_short_factors() -> None:
    factors = np.linspace(1, 2, SIZE // 2).tolist()
    rotary, positions = read(
        rope_type="longrope", short_factor=factors, long_factor=factors, original_max_position_embeddings=1024
    )
    assert rotary.frequencies == pytest.approx([f / s for f, s in zip(PLAIN, factors, strict=True)])
    assert rotary.magnitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))
    assert positions == 1024


def test_dynamic_scaling_is_none_within_the_context() -> None:
    assert read(rope_type="dynamic", factor=2.0) == read()


def test_the_table_holds_the_magnitude_times_cos_and_sin() -> None:
    cos, sin = Rotary((0.5, 0.25), 2.0).table(3)
    angles = np.array([[0, 0], [0.5, 0.25], [1.0, 0.5]])
    np.testing.assert_allclose(cos, 2 * np.cos(angles), rtol=1e-6)
    np.testing.assert_allclose(sin, 2 * np.sin(angles), rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "su"}, "rope_type is 'su'; expected one of default"),
        ({"rope_type": "linear", "factor": 0}, "ZeroDivisionError|not finite|division"),
        ({"rope_type": "longrope", "short_factor": [1.0], "original_max_position_embeddings": 1}, "must have 32 numbers"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": -1}, "not finite"),
    ],
)  # fmt: skip
def test_a_rotation_that_makes_no_sense_is_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ArithmeticError), match=message):
        read(**scaling)
