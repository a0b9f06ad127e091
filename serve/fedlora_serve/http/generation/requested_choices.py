"""The choices that one request wants: their prompts, their lengths, and how the tokens of each are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora_serve.batching.request import TextEngine
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.field_types import ALL_THAT_FIT
from fedlora_serve.http.protocol.generation_body import GenerationBody
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.text.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedChoice:
    """One choice that is wanted."""

    prompt: tuple[int, ...]
    sampling: Sampling


def requested_choices(
    state: ServiceState,
    engine: TextEngine,
    body: GenerationBody,
    prompts: Sequence[tuple[int, ...]],
    *,
    asked: int | None,
    default: int | None,
    logprobs: int | None,
    param: str,
    virtual_tokens: int = 0,
) -> list[RequestedChoice]:
    """n choices for each prompt, side by side, each with a seed of its own.

    `asked` is their length, by the name `param`, or ALL_THAT_FIT; `default` stands for it where it is None, as far as there
    is room, which the `virtual_tokens` of an adapter take from it.
    Raises ApiError.
    """
    n = body.choices_per_prompt
    if asked == ALL_THAT_FIT:
        asked, default = None, state.limits.max_tokens
    default = state.model_defaults.max_tokens if default is None else default
    lengths = [_max_tokens(state, engine, prompt, virtual_tokens, asked, default, param) for prompt in prompts]
    _check_logprobs(state, n * sum(lengths), logprobs, param)
    if (body.min_tokens or 0) > min(lengths):
        message = f"min_tokens: expected at most {param}, which is {min(lengths)}, got {body.min_tokens}"
        raise ApiError(400, message, param="min_tokens")
    _check_tokens(state, body)

    def sampling(length: int, index: int) -> Sampling:
        return body.sampling(max_tokens=length, logprobs=logprobs, index=index, defaults=state.model_defaults.values)

    alike = {length: sampling(length, 0) for length in {*lengths}} if body.seed is None else {}
    return [
        RequestedChoice(prompt=prompt, sampling=alike.get(length) or sampling(length, index * n + number))
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        for number in range(n)
    ]


def check_stream_options(body: GenerationBody) -> None:
    """Raises ApiError where there are some and no stream."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only together with stream", param="stream_options")
    if body.stream_options and body.stream_options.continuous_usage_stats and not body.includes_usage:
        param = "stream_options.continuous_usage_stats"
        raise ApiError(400, f"{param}: only together with include_usage", param=param)


def _check_tokens(state: ServiceState, body: GenerationBody) -> None:
    vocabulary = state.base.model.vocab_size
    for param, tokens in (("stop_token_ids", body.stop_token_ids), ("logit_bias", body.logit_bias)):
        if (most := max(tokens, default=0)) >= vocabulary:
            message = f"{param}: expected token ids from 0 to {vocabulary - 1}, got {most}"
            raise ApiError(400, message, param=param)


def _check_logprobs(state: ServiceState, tokens: int, logprobs: int | None, param: str) -> None:
    """They are kept until they are sent, and take a hundred times the memory of their tokens."""
    most, may_come = state.limits.max_logprobs, 0 if logprobs is None else tokens * (logprobs + 1)
    if may_come > most:
        raise ApiError(
            400,
            f"logprobs: {tokens} tokens may come, with {may_come} log-probabilities; expected at most {most}; ask for "
            f"fewer of them, set {param} lower, or send several requests",
            param="logprobs",
        )


def _max_tokens(
    state: ServiceState, engine: TextEngine, prompt: Sequence[int], virtual_tokens: int,
    asked: int | None, default: int | None, param: str,
) -> int:  # fmt: skip
    """What is asked for is given or refused; a default is cut to what there is room for, and None takes all of it."""
    context, most = engine.max_tokens, state.limits.max_tokens
    left = context - len(prompt) - virtual_tokens
    if asked is not None and asked > most:
        raise ApiError(
            400, f"{param}: expected at most {most}, which is this service's limit, got {asked}", param=param
        )
    if left < (asked or 1):
        answer, hint = (f"{param} is {asked}", " or ask for fewer") if asked else ("an answer needs 1", "")
        beside = f", its adapter {virtual_tokens} virtual ones" if virtual_tokens else ""
        raise ApiError(
            400,
            f"the prompt has {len(prompt)} tokens{beside} and {answer}, more than the context of {context} tokens; shorten "
            f"the prompt{hint}",
            code="context_length_exceeded",
            param=param if asked else None,
        )
    return asked or min(default or left, left, most)
