"""JSON in one form: the examples of RFC 8785, and what has no such form."""

from __future__ import annotations

import json
import math

import pytest
import rfc8785
from fedlora.errors import IdentityError
from fedlora.identity.canonical import canonical, read_canonical
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_the_example_of_the_rfc() -> None:
    """Section 3.2.2 and its result in 3.2.3."""
    text = (
        '{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],'
        r' "string": "\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}'
    )
    assert canonical(json.loads(text)).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        r'"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"}'
    )


def test_names_are_in_the_order_of_their_utf_16() -> None:
    """Section 3.2.3: the emoji's first unit, a surrogate, is below the Hebrew letter's."""
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    assert list(json.loads(canonical(value))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, {1: 2}, "\ud800", b"bytes", object(), {"a": {3}}])
def test_what_has_no_such_form_is_refused(value: object) -> None:
    with pytest.raises(IdentityError, match="no JSON of one form"):
        canonical(value)


def test_what_lies_too_deep_is_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(IdentityError):
        canonical(value)


@given(JSON | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=9), JSON, max_size=6))
def test_the_bytes_are_those_of_rfc8785_itself(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(JSON)
def test_the_same_value_comes_back_from_its_only_form(value: object) -> None:
    content = canonical(value)
    assert read_canonical(content, "here") == json.loads(json.dumps(value))
    assert canonical(read_canonical(content, "here")) == content


@pytest.mark.parametrize(
    "content", [b'{"a": 1}', b'{"b":1,"a":2}', b"1.0", b"1e2", b'"\\u0041"', b"{", b'{"a":1,"a":1}', b"NaN"]
)
def test_another_form_is_refused(content: bytes) -> None:
    with pytest.raises(IdentityError, match=r"record\.json: .*expected"):
        read_canonical(content, "record.json")


def test_a_whole_number_beyond_two_to_the_53_is_a_float() -> None:
    assert canonical(1e20) == b"100000000000000000000"
    assert read_canonical(b"100000000000000000000", "here") == 1e20
    with pytest.raises(IdentityError):
        read_canonical(b"9" * 5000, "here")
