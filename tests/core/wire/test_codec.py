"""One contract for every codec."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.errors import UpdateError
from fedlora.wire.codec import CODECS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

ALL = pytest.mark.parametrize("codec", list(CODECS))
ARRAYS = st.lists(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=5), elements=st.floats(-60000, 60000, width=32)),
    max_size=4,
)


@ALL
@given(arrays=ARRAYS)
def test_decoding_gives_the_numbers_rounded_to_nearest(codec: str, arrays: list[NDArray[np.float32]]) -> None:
    payload = CODECS[codec].encode(arrays)
    decoded = CODECS[codec].decode(memoryview(payload), [array.shape for array in arrays])
    assert len(decoded) == len(arrays)
    for array, back in zip(arrays, decoded, strict=True):
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, array.astype(CODECS[codec].dtype).astype(np.float32))


@ALL
@given(arrays=ARRAYS)
def test_coding_what_was_decoded_gives_the_same_bytes(codec: str, arrays: list[NDArray[np.float32]]) -> None:
    payload = CODECS[codec].encode(arrays)
    decoded = CODECS[codec].decode(memoryview(payload), [array.shape for array in arrays])
    assert CODECS[codec].encode(decoded) == payload


def test_f32_keeps_every_bit() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert CODECS["f32"].encode([array]) == array.tobytes()


def test_f16_takes_half_the_bytes() -> None:
    array = np.ones((3, 4), np.float32)
    assert len(CODECS["f16"].encode([array])) == 24


@ALL
@pytest.mark.parametrize("change", [-1, 1, 4])
def test_a_payload_of_another_length_is_refused(codec: str, change: int) -> None:
    payload = CODECS[codec].encode([np.ones((3, 4), np.float32)])
    changed = payload[:change] if change < 0 else payload + b"\0" * change
    with pytest.raises(UpdateError, match=rf"payload of {len(changed)} bytes; codec {codec} expected") as caught:
        CODECS[codec].decode(memoryview(changed), [(3, 4)])
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38])
def test_a_value_that_f16_cannot_hold_is_refused_with_the_codec_that_can(value: float) -> None:
    with pytest.raises(UpdateError, match=r"codec f16 cannot hold .*; use codec f32") as caught:
        CODECS["f16"].encode([np.array([1.0, value], np.float32)])
    assert caught.value.reason == "overflow"


@ALL
def test_values_that_are_not_finite_stay_what_they_are(codec: str) -> None:
    array = np.array([np.nan, np.inf, -np.inf], np.float32)
    (back,) = CODECS[codec].decode(memoryview(CODECS[codec].encode([array])), [(3,)])
    np.testing.assert_array_equal(back, array)


@ALL
def test_decoded_arrays_own_their_memory(codec: str) -> None:
    payload = bytearray(CODECS[codec].encode([np.ones(3, np.float32)]))
    (back,) = CODECS[codec].decode(memoryview(payload), [(3,)])
    payload[:] = bytes(len(payload))
    assert (back == 1).all()
    back[0] = 2


@ALL
@given(arrays=ARRAYS)
def test_no_number_of_a_payload_passes_its_bound(codec: str, arrays: list[NDArray[np.float32]]) -> None:
    payload = CODECS[codec].encode(arrays)
    decoded = CODECS[codec].decode(memoryview(payload), [array.shape for array in arrays])
    numbers = np.concatenate([np.zeros(1, np.float32), *(array.ravel() for array in decoded)])
    bound = CODECS[codec].bound(memoryview(payload))
    assert bound >= np.abs(numbers).max() * (1 - 1e-3) - 1e-18, "the square of a smaller number is 0"
    assert bound <= np.sqrt(np.sum(np.square(numbers, dtype=np.float64))) * (1 + 1e-3) + 1e-18


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 99_999])
def test_a_payload_with_a_number_that_is_not_finite_has_no_bound(codec: str, value: float, place: int) -> None:
    array = np.ones(100_000, np.float32)
    array[place] = value
    assert not np.isfinite(CODECS[codec].bound(memoryview(CODECS[codec].encode([array]))))


def test_the_bound_of_many_small_numbers_is_small() -> None:
    array = np.ones(1_000_000, np.float32)
    assert CODECS["f32"].bound(memoryview(CODECS["f32"].encode([array]))) <= 363
