from __future__ import annotations

import math
from typing import Any

import pytest
from fedlora.errors import ConfigError
from fedlora_serve.text.sampling import Sampling


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("temperature", [-0.1, 100.1, math.nan, math.inf], "temperature must be from 0 to 100"),
        ("top_k", [-1, math.inf], "top_k must be at least 0"),
        ("top_p", [0, -0.5, 1.01, math.nan], "top_p must be above 0 and at most 1"),
        ("min_p", [-0.1, 1.1, math.nan], "min_p must be from 0 to 1"),
        ("repetition_penalty", [0, -1, 101, math.inf, math.nan], "repetition_penalty must be above 0 and at most 100"),
        ("presence_penalty", [-2.1, 2.1, math.nan], "presence_penalty must be from -2 to 2"),
        ("frequency_penalty", [-2.1, 2.1, math.nan], "frequency_penalty must be from -2 to 2"),
        ("seed", [2**63, 10**400, -(2**63) - 1], f"seed must be from {-(2**63)} to {2**63 - 1}"),
        ("max_tokens", [0, -1], "max_tokens must be at least 1"),
        ("logprobs", [-1, 21], "logprobs must be from 0 to 20"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_it_takes(name: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ConfigError) as caught:
            Sampling(**{name: value})
        assert str(caught.value) == f"{message}, got {value}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logit_bias": {3: 100.5}}, "logit_bias of token 3 must be from -100 to 100, got 100.5"),
        ({"logit_bias": {3: math.nan}}, "logit_bias of token 3 must be from -100 to 100, got nan"),
        ({"logit_bias": {-1: 1.0}}, "a token in logit_bias must be at least 0, got -1"),
        (
            {"logit_bias": dict.fromkeys(range(1025), 1.0)},
            "the number of tokens in logit_bias must be from 0 to 1024, got 1025",
        ),
        ({"stop": ("x",) * 17}, "the number of stop strings must be from 0 to 16, got 17"),
        ({"stop": ("x", "")}, "the characters of a stop string must be from 1 to 1024, got 0"),
        ({"stop": ("x" * 1025,)}, "the characters of a stop string must be from 1 to 1024, got 1025"),
    ],
)
def test_biases_and_stop_strings_are_refused_one_by_one(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**values)
    assert str(caught.value) == message


def test_every_bound_itself_is_taken() -> None:
    Sampling(
        temperature=100, top_k=0, top_p=1, min_p=1, repetition_penalty=100, presence_penalty=-2, frequency_penalty=2,
        logit_bias={0: -100.0, 2**40: 100.0}, seed=2**63 - 1, max_tokens=1, stop=("x" * 1024,) * 16, logprobs=20,
    )  # fmt: skip
    Sampling(top_k=10**400, max_tokens=10**400)
    Sampling(temperature=0, top_p=1e-9, min_p=0, repetition_penalty=1e-9, seed=-(2**63), logprobs=0)


@pytest.mark.parametrize("stop", ["\ud800", "a\udcff"])
def test_a_stop_string_that_is_no_text_is_refused(stop: str) -> None:
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        Sampling(stop=(stop,))
