"""What completions and chat completions have in common: how tokens are chosen, and what the answer tells of them.

Names and defaults are OpenAI's, and vLLM's for what OpenAI does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from fedlora_serve.http.protocol.adapter_shares import AdapterShares
from fedlora_serve.http.protocol.field_types import (
    Biases,
    Count,
    ModelName,
    NotUsedObject,
    NotUsedText,
    Number,
    Stops,
    StopTokens,
    Whole,
)
from fedlora_serve.http.protocol.request_body import RequestBody
from fedlora_serve.text.sampling import Sampling

_SEEDS = 1 << 63
_NO_DEFAULTS: Mapping[str, float] = MappingProxyType({})
_Penalty = Annotated[Number, Field(ge=-2, le=2)]


class StreamOptions(RequestBody):
    """What a stream tells beside the answer."""

    include_usage: bool | None = Field(None, description="One more chunk at the end, with the usage.")
    continuous_usage_stats: bool | None = Field(
        None, description="The usage so far in every chunk, with include_usage."
    )


class GenerationBody(RequestBody):
    """The fields of both routes."""

    model: ModelName
    adapters: AdapterShares = None
    n: Count | None = Field(1, description="Answers to each prompt.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = Field(1.0, description="0: the likeliest token.")
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[Whole, Field(ge=-1, le=_SEEDS - 1)] | None = Field(0, description="0 and -1: all tokens.")
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = 1.0
    presence_penalty: _Penalty | None = 0.0
    frequency_penalty: _Penalty | None = 0.0
    logit_bias: Biases = Field(default_factory=dict)
    seed: Annotated[Whole, Field(ge=-_SEEDS, le=_SEEDS - 1)] | None = None
    stop: Stops = ()
    stop_token_ids: StopTokens = ()
    include_stop_str_in_output: bool | None = False
    min_tokens: Annotated[Whole, Field(ge=0)] | None = Field(0, description="No end and no stop before so many.")
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = Field(True, description="The text is without them.")

    spaces_between_special_tokens: bool | None = Field(None, description="Not used: of slow tokenizers.")
    # What changes no answer here, whoever does it: it is taken and not used.
    user: NotUsedText = None
    safety_identifier: NotUsedText = None
    prompt_cache_key: NotUsedText = None
    metadata: NotUsedObject = None
    store: Literal[False] | None = Field(None, description="Nothing is stored.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one.")

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def includes_running_usage(self) -> bool:
        return self.includes_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling(
        self, *, max_tokens: int, logprobs: int | None, index: int, defaults: Mapping[str, float] = _NO_DEFAULTS
    ) -> Sampling:
        """How the answer number `index` is chosen: each has a seed of its own.

        `defaults` are the model's own, for what the request leaves out.
        """

        def chosen(name: str, otherwise: float) -> float:
            given = getattr(self, name) if name in self.model_fields_set else None
            return float(defaults.get(name, otherwise) if given is None else given)

        return Sampling(
            temperature=chosen("temperature", 1.0),
            top_k=max(0, int(chosen("top_k", 0))),
            top_p=chosen("top_p", 1.0),
            min_p=chosen("min_p", 0.0),
            repetition_penalty=chosen("repetition_penalty", 1.0),
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            logit_bias=self.logit_bias,
            seed=None if self.seed is None else (self.seed + index) % _SEEDS,
            max_tokens=max_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
            min_tokens=self.min_tokens or 0,
            skip_special_tokens=self.skip_special_tokens is not False,
            logprobs=logprobs,
            ignore_eos=bool(self.ignore_eos),
        )


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)
