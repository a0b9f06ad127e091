"""How the tokens of one answer are chosen: the parameters, as OpenAI's interface and vLLM's name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlora.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """From `low` to `high`; where `above`, without `low` itself."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value != math.inf and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"above {self.low} and at most {self.high}" if self.above else f"from {self.low} to {self.high}"


_RANGES = {
    "temperature": _Range(low=0, high=100),
    "top_k": _Range(low=0),
    "top_p": _Range(low=0, high=1, above=True),
    "min_p": _Range(low=0, high=1),
    "repetition_penalty": _Range(low=0, high=100, above=True),
    "presence_penalty": _Range(low=-2, high=2),
    "frequency_penalty": _Range(low=-2, high=2),
    "seed": _Range(low=-(2**63), high=2**63 - 1),
    "max_tokens": _Range(low=1),
    "min_tokens": _Range(low=0),
    "logprobs": _Range(low=0, high=20),
}
_BIASES, _BIAS = _Range(low=0, high=1024), _Range(low=-100, high=100)  # how many, and each
_STOP_TOKENS = _Range(low=0, high=1024)
_STOPS, _STOP_CHARACTERS = _Range(low=0, high=16), _Range(low=1, high=1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when the answer ends. Raises ConfigError for a value that makes no sense."""

    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0  # only the k likeliest; 0: all
    top_p: float = 1.0  # only the fewest likeliest whose probabilities add up to it
    min_p: float = 0.0  # only those at least so likely as this share of the likeliest
    repetition_penalty: float = 1.0  # scores of tokens in the prompt or the answer are divided, or multiplied, by it
    presence_penalty: float = 0.0  # taken off the scores of tokens in the answer
    frequency_penalty: float = 0.0  # the same, once for every time
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the scores of these tokens
    seed: int | None = None  # None: another answer every time
    max_tokens: int = 128
    stop: tuple[str, ...] = ()  # the answer ends before any of these
    stop_token_ids: tuple[int, ...] = ()  # and before any of these
    include_stop_str_in_output: bool = False  # the answer ends after what stopped it
    min_tokens: int = 0  # nothing ends the answer before it has so many
    skip_special_tokens: bool = True  # the text is without them
    logprobs: int | None = None  # log-probabilities of the chosen token and of so many likeliest; None: none
    ignore_eos: bool = False  # go on after the model has ended its text

    def __post_init__(self) -> None:
        for name, allowed in _RANGES.items():
            value = getattr(self, name)
            if value is not None:  # the others are never None
                _check(name, value, allowed)
        _check("the number of tokens in logit_bias", len(self.logit_bias), _BIASES)
        for token, bias in self.logit_bias.items():
            _check("a token in logit_bias", token, _Range(low=0))
            _check(f"logit_bias of token {token}", bias, _BIAS)
        _check("the number of stop_token_ids", len(self.stop_token_ids), _STOP_TOKENS)
        for token in self.stop_token_ids:
            _check("a token in stop_token_ids", token, _Range(low=0))
        _check("the number of stop strings", len(self.stop), _STOPS)
        for text in self.stop:
            _check("the characters of a stop string", len(text), _STOP_CHARACTERS)
            if not _is_text(text):
                raise ConfigError(
                    f"the stop string {text!r:.80} is not UTF-8 text, so that no answer has it; expected whole characters"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenToken:
    """A token of the answer, with the log-probabilities that were asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest ones, (token, log-probability), the first ones first


def _is_text(text: str) -> bool:
    """Whether it has no half of a UTF-16 pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check(name: str, value: float, allowed: _Range) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be {allowed}, got {value}")
