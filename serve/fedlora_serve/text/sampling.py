"""How the tokens of one answer are chosen: the parameters, as OpenAI's interface and vLLM's name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when the answer ends."""

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
    logprobs: int | None = None  # log-probabilities of the chosen token and of so many likeliest; None: none
    ignore_eos: bool = False  # go on after the model has ended its text
