"""From what a request asks to tokens, as the model was trained on them, within the service's bounds."""

from __future__ import annotations

from collections.abc import Sequence

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.batching.request import TextEngine
from fedlora_serve.http.generation.chat_text import chat_text
from fedlora_serve.http.protocol.chat import ChatBody
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.text.tokenizer import prompt_tokens

_AT_ONCE = 2048  # characters, or tokens, of prompts that are cut into tokens on the event loop: within a millisecond
_CONTEXT = "context_length_exceeded"


def engine_of(state: ServiceState) -> TextEngine:
    """What generates text. Raises ApiError where the base does not."""
    if state.engine is None:
        route = "/v1/classify" if state.classifier else "/v1/embeddings"
        raise ApiError(
            400,
            f"{state.base_name} is an encoder ({state.base.model.model_type}): it generates no text; use {route}",
            code="unsupported_model",
            param="model",
        )
    return state.engine


async def completion_prompts(
    state: ServiceState,
    prompts: Sequence[str | tuple[int, ...]],
    *,
    share: str = "",
    choices: int,
    add_special_tokens: bool = True,
) -> list[tuple[int, ...]]:
    """The tokens of each prompt; a text begins as the base's tokenizer has it, unless there are to be no special tokens.

    `choices` is how many each prompt gets. Raises BusyError where the engine has no room for those of this share.
    """
    _check_number(state, len(prompts), choices)
    engine_of(state).check_room(share, len(prompts) * choices)

    def tokens() -> list[tuple[int, ...]]:
        result = [_completion_tokens(state, one, add_special_tokens) for one in prompts]
        for prompt in result:
            _check_tokens(state, prompt, "prompt")
        return result

    if sum(map(len, prompts)) <= _AT_ONCE:
        return tokens()
    return await state.few_threads.run(share, tokens)


async def chat_prompt(
    state: ServiceState, body: ChatBody, *, share: str = "", adapter: LoadedAdapter | None = None, choices: int
) -> tuple[int, ...]:
    """The tokens of a chat, written by the adapter's template, or else the base's.

    It writes the special ones too, so that none are added unasked. Raises ApiError where there is no template, or it
    refuses the messages, BusyError where the engine has no room for the choices of this share.
    """
    _check_number(state, 1, choices)
    engine_of(state).check_room(share, choices)

    def rendered() -> tuple[int, ...]:
        template = state.adapter_templates.of(adapter) or state.template
        if template is None:
            raise _no_template(state, adapter)
        tokens = _text_tokens(state, chat_text(template, body), bool(body.add_special_tokens))
        _check_tokens(state, tokens, "messages")
        return tokens

    return await state.one_thread.run(share, rendered)


def _no_template(state: ServiceState, adapter: LoadedAdapter | None) -> ApiError:
    neither = f"neither {state.base_name} nor {adapter.name} has" if adapter else f"{state.base_name} has no"
    return ApiError(
        400,
        f"{neither} {'a ' if adapter else ''}chat template; use /v1/completions, or serve with --chat-template FILE, or an "
        "adapter whose folder has a chat_template.jinja",
        code="no_chat_template",
        param="model",
    )


def _completion_tokens(state: ServiceState, prompt: str | tuple[int, ...], add_special_tokens: bool) -> tuple[int, ...]:
    return prompt if isinstance(prompt, tuple) else _text_tokens(state, prompt, add_special_tokens)


def _text_tokens(state: ServiceState, text: str, add_special_tokens: bool) -> tuple[int, ...]:
    """The tokens of a text, after those that the tokenizer puts before every text, where they are to be added."""
    most = min(state.limits.max_prompt_tokens, _context(state))
    return tuple(
        prompt_tokens(state.tokenizer, state.base.shape, text, add_special_tokens=add_special_tokens, at_most=most)
    )


def _context(state: ServiceState) -> int:
    return engine_of(state).max_tokens


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
        raise ApiError(400, f"{param}: expected one token or more, which the model begins with, got none", param=param)
    if len(tokens) > most:
        got = f"more than {2 * most} tokens" if len(tokens) > 2 * most else str(len(tokens))  # the rest was not read
        message = f"{param}: expected at most {most} tokens, which is this service's limit, got {got}"
        raise ApiError(400, message, code=_CONTEXT, param=param)
    if len(tokens) > 2 * (context := _context(state)):  # of a text, only as many were read
        message = (
            f"{param}: more than {2 * context} tokens, more than the context of {context} tokens; shorten the prompt"
        )
        raise ApiError(400, message, code=_CONTEXT, param=param)
    if max(tokens) >= vocabulary:
        message = f"{param}: expected token ids from 0 to {vocabulary - 1}, got {max(tokens)}"
        raise ApiError(400, message, param=param)
