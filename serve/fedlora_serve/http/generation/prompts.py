"""From what a request asks to tokens, as the model was trained on them, within the service's bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fedlora_serve.batching.request import TextEngine
from fedlora_serve.http.generation.chat_text import chat_text
from fedlora_serve.http.protocol.chat import ChatBody
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.text.tokenizer import prompt_tokens, tokens_of

_CONTEXT = "context_length_exceeded"


def engine_of(state: ServiceState) -> TextEngine:
    """What generates text. Raises ApiError where the base does not."""
    if state.engine is None:
        raise ApiError(
            400,
            f"{state.base_name} is an encoder ({state.base.model.model_type}): it generates no text; use /v1/embeddings",
            code="unsupported_model",
            param="model",
        )
    return state.engine


async def completion_prompts(
    state: ServiceState, prompts: Sequence[str | tuple[int, ...]], *, choices: int
) -> list[tuple[int, ...]]:
    """The tokens of each prompt; a text begins as every document that the model was trained on did.

    `choices` is how many each prompt gets.
    """
    _check_number(state, len(prompts), choices)
    tokens = await asyncio.to_thread(lambda: [_completion_tokens(state, prompt) for prompt in prompts])
    for prompt in tokens:
        _check_tokens(state, prompt, "prompt")
    return tokens


async def chat_prompt(state: ServiceState, body: ChatBody, *, choices: int) -> tuple[int, ...]:
    """The tokens of a chat, written by the base's template. Raises ApiError where it has none, or refuses the messages."""
    template = state.template
    if template is None:
        raise ApiError(
            400,
            f"{state.base_name} has no chat template; use /v1/completions, or pack a model whose chat_template.jinja or "
            "tokenizer_config.json has one",
            code="no_chat_template",
            param="model",
        )
    _check_number(state, 1, choices)

    def rendered() -> tuple[int, ...]:
        return tuple(tokens_of(state.tokenizer, chat_text(template, body), add_special_tokens=False))

    tokens = await asyncio.get_running_loop().run_in_executor(state.one_thread, rendered)
    _check_tokens(state, tokens, "messages")
    return tokens


def _completion_tokens(state: ServiceState, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(prompt, tuple):
        return prompt
    return tuple(prompt_tokens(state.tokenizer, prompt, state.base.shape.bos_token_id))


def _check_number(state: ServiceState, prompts: int, choices: int) -> None:
    limits = state.limits
    for param, got, most in (
        ("prompt", prompts, limits.max_batch_prompts),
        ("n", choices, limits.max_n),
        ("n", prompts * choices, limits.max_answers),
    ):
        if got > most:
            what = {"prompt": "prompts", "n": "answers"}[param]
            raise ApiError(400, f"{param}: expected at most {most} {what} in one request, got {got}", param=param)


def _check_tokens(state: ServiceState, tokens: Sequence[int], param: str) -> None:
    most, vocabulary = state.limits.max_prompt_tokens, state.base.model.vocab_size
    if not tokens:
        raise ApiError(400, f"{param}: there are no tokens in it, and the model needs one to begin with", param=param)
    if len(tokens) > most:
        message = f"{param}: expected at most {most} tokens, which is this service's limit, got {len(tokens)}"
        raise ApiError(400, message, code=_CONTEXT, param=param)
    if max(tokens) >= vocabulary:
        message = f"{param}: expected token ids from 0 to {vocabulary - 1}, got {max(tokens)}"
        raise ApiError(400, message, param=param)
