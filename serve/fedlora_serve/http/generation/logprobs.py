"""Log-probabilities, as completions write them and as chats do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedlora_serve.http.protocol.chat import ChatLogprobs, ChosenLogprob, TokenLogprob
from fedlora_serve.http.protocol.completions import CompletionLogprobs
from fedlora_serve.http.service.token_strings import TokenStrings
from fedlora_serve.text.sampling import ChosenToken

_LEAST = -9999.0  # JSON has no infinity


def completion_logprobs(
    strings: TokenStrings, tokens: Sequence[ChosenToken], *, offset: int, top: bool
) -> CompletionLogprobs:
    """The log-probabilities of tokens whose text begins at character `offset`; where `top`, also those of the likeliest
    tokens of each place, the chosen one among them."""
    texts = [strings.text_and_bytes(token.token)[0] for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return CompletionLogprobs.model_construct(  # our own numbers, up to 100,000 of them: not validated in one go
        tokens=texts,
        token_logprobs=[_finite(token.logprob) for token in tokens],
        top_logprobs=[_likeliest(strings, token) for token in tokens] if top else None,
        text_offset=offsets,
    )


def chat_logprobs(strings: TokenStrings, tokens: Iterable[ChosenToken]) -> ChatLogprobs:
    content = [
        ChosenLogprob(
            **_token(strings, chosen.token, chosen.logprob).model_dump(),
            top_logprobs=[_token(strings, token, logprob) for token, logprob in chosen.top],
        )
        for chosen in tokens
    ]
    return ChatLogprobs(content=content, refusal=None)


def whole_chat_logprobs(strings: TokenStrings, tokens: list[ChosenToken]) -> ChatLogprobs:
    """The same, to be written once (`protocol.written`); tokens that were written are taken out of the list."""

    def content() -> Iterator[ChosenLogprob]:
        tokens.reverse()
        while tokens:
            yield from chat_logprobs(strings, [tokens.pop()]).content

    return ChatLogprobs.model_construct(content=content(), refusal=None)


def _token(strings: TokenStrings, token: int, logprob: float) -> TokenLogprob:
    text, known = strings.text_and_bytes(token)
    return TokenLogprob(token=text, logprob=_finite(logprob), bytes=None if known is None else list(known))


def _likeliest(strings: TokenStrings, chosen: ChosenToken) -> dict[str, float]:
    """{token: log-probability}; of several tokens with the same text the likeliest."""
    result: dict[str, float] = {}
    for token, logprob in (*chosen.top, (chosen.token, chosen.logprob)):
        result.setdefault(strings.text_and_bytes(token)[0], _finite(logprob))
    return result


def _finite(logprob: float) -> float:
    return max(_LEAST, logprob)
