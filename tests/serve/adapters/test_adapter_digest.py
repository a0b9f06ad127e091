"""The digest of an adapter's values."""

from __future__ import annotations

import numpy as np
from fedlora.exported.inputs import digest_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

Values = dict[str, NDArray[np.float32]]
VALUES = st.dictionaries(
    st.text(max_size=3),
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=2, max_side=2, min_side=0), elements=st.just(0)),
    max_size=3,
)


def same(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and np.array_equal(one[name], other[name]) for name in one
    )


@given(VALUES, VALUES)
def test_two_contents_have_one_digest_only_where_they_are_equal(one: Values, other: Values) -> None:
    assert (digest_of(one) == digest_of(other)) == same(one, other)


def test_names_shapes_and_every_bit_of_a_value_count() -> None:
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((1, 1), np.float32)}
    changed = values["a"].copy()
    changed[1, 2] = np.nextafter(changed[1, 2], np.float32(9))
    others: list[Values] = [
        {**values, "a": values["a"].reshape(3, 2)},
        {**values, "a": changed},
        {"a": values["a"]},
        {"a": values["a"], "c": values["b"]},
        {"a": values["b"], "b": values["a"]},
        {},
    ]
    assert len({digest_of(values), *map(digest_of, others)}) == 1 + len(others)


def test_neither_the_order_of_the_inputs_nor_of_the_memory_counts() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 2), np.float32)
    digest = digest_of({"a": a, "b": b})
    assert digest_of({"b": b, "a": np.asfortranarray(a)}) == digest
    assert digest_of({"b": b, "a": np.repeat(a, 2, 1)[:, ::2]}) == digest
    assert len(digest) == 64
