"""A prompt that begins as a text: the base's embeddings of its tokens, special ones too, as PEFT's init TEXT."""

# P virtual tokens

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.base.prompt_start import embeddings_of
from fedlora.base.tokenizer import library_errors
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds.virtual import WORD

from fedlora_client.data.tokenizer import open_tokenizer


def with_prompt_of(adapter: Adapter, text: str, base: BasePack) -> Adapter:
    """`adapter` with the first P tokens of a text as its prompt; one that has fewer begins again. Raises ConfigError."""
    tokenizer = open_tokenizer(base.directory)
    with library_errors():
        ids = tokenizer.encode(text).ids
    if not ids:
        raise ConfigError(f"lora.prompt_tuning_init_text has no token, got {text!r:.80}; give one of a word or more")
    tokens = np.resize(np.array(ids, np.int64), adapter.config.num_virtual_tokens)
    return replace(adapter, extras={**adapter.extras, WORD: embeddings_of(base, tokens)})
