"""Generate text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from fedlora.errors import ConfigError
from tokenizers.decoders import DecodeStream

from fedlora_serve.engine import Engine, LoadedAdapter
from fedlora_serve.sampling import Sampling, choose


def generate(
    engine: Engine, prompt: str, sampling: Sampling, *, adapter: LoadedAdapter | None = None, seed: int = 0
) -> Iterator[str]:
    """Yield what follows `prompt`, never half a character, until the model ends its text, `max_tokens` or the context.

    Raises ConfigError where the prompt is longer than the base's context.
    """
    shape = engine.base.shape
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ConfigError("the prompt is not UTF-8 text")
    tokens = engine.tokenizer.encode(prompt, add_special_tokens=False).ids
    if shape.bos_token_id is not None:
        tokens = [shape.bos_token_id, *tokens]
    generator = np.random.default_rng(seed)
    # The stream has seen the prompt: whether a piece begins with a space depends on what stands before it.
    stream = DecodeStream(tokens, skip_special_tokens=True)
    decoding = engine.start(adapter)
    for _ in range(sampling.max_tokens):
        token = choose(decoding.step(tokens), sampling.temperature, generator)
        if token in shape.stop_token_ids:
            return
        piece = stream.step(engine.tokenizer, token)
        if piece:
            yield piece
        if decoding.length == shape.max_positions:
            return
        tokens = [token]
