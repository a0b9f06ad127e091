"""Generate text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

from fedlora.errors import ConfigError

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.local.engine import Engine
from fedlora_serve.text.answer_text import AnswerText
from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.token_sampler import TokenSampler
from fedlora_serve.text.tokenizer import prompt_tokens


def generate(engine: Engine, prompt: str, sampling: Sampling, *, adapter: LoadedAdapter | None = None) -> Iterator[str]:
    """Yield what follows `prompt`, never half a character, until the model ends its text, a stop string or token,
    `max_tokens` or the context.

    Raises ConfigError where the prompt is longer than the base's context, or has no token to begin with.
    """
    shape = engine.base.shape
    tokens = prompt_tokens(engine.tokenizer, shape, prompt)
    if not tokens:
        raise ConfigError(
            "the prompt is empty, and the base's tokenizer begins a text with no token of its own; give it one"
        )
    ends = shape.stop_token_ids
    if adapter is not None:
        ends += adapter.chat.end_tokens(engine.tokenizer.token_to_id, shape.vocab_size)
    text = AnswerText(sampling, engine.tokenizer, tokens, ends)
    sampler = TokenSampler(sampling, tokens, shape.vocab_size, text.ends)
    decoding = engine.start(adapter)
    for _ in range(sampling.max_tokens):
        token = sampler.choose(decoding.step(tokens)).token
        piece = text.push(token)
        if piece:
            yield piece
        if text.has_ended or decoding.length == shape.max_positions:
            break
        tokens = [token]
    rest = text.finish()
    if rest:
        yield rest
