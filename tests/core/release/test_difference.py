"""A file is made of the one before and the difference, to the bit; and what is no difference makes none."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from fedlora.release.difference import applied, difference
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(max_size=300), st.randoms(use_true_random=False))
def test_what_comes_out_is_the_child(parent: bytes, random: object) -> None:
    child = bytes(byte ^ random.choice((0, 0, 1, 255)) for byte in parent)  # type: ignore[attr-defined]
    made = difference(parent, child)
    assert made is not None and applied(parent, made) == child


def test_numbers_that_moved_a_little_are_smaller() -> None:
    generator = np.random.default_rng(1)
    parent = generator.normal(0, 0.02, 50_000).astype(np.float32)
    child = (parent * (1 + generator.normal(0, 1e-3, parent.shape))).astype(np.float32)
    made = difference(parent.tobytes(), child.tobytes())
    assert made is not None and len(made) < 0.75 * child.nbytes < 0.95 * len(zlib.compress(child.tobytes()))
    assert applied(parent.tobytes(), made) == child.tobytes()


def test_files_of_two_sizes_have_none() -> None:
    assert difference(b"1234", b"12345") is None


@pytest.mark.parametrize(
    "packed",
    [b"", b"x", zlib.compress(b"123"), zlib.compress(b"12345"), zlib.compress(bytes(1 << 26)), zlib.compress(b"1234")[:-1],
     zlib.compress(b"1234") + b"x"],
)  # fmt: skip
def test_what_is_no_difference_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"zlib stream|another size"):
        applied(b"abcd", packed)
