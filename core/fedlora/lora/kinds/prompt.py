"""prompt: the embeddings of P virtual tokens before the text: x = [e_1 ... e_P, embed(t_1) ... embed(t_T)].

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021 (arXiv:2104.08691). They are what the first
block reads: where a family scales its embeddings (Gemma), these are not scaled again, as in PEFT.

Own tensor: prompt_embeddings [P, H]. It begins as `lora.prompt_tuning_init` says, with PEFT's names: as embeddings of
tokens that are drawn from the vocabulary (SAMPLE_VOCAB), of a text (TEXT), or normally distributed (RANDOM). So a new
adapter does change what the base says.

Its weighted mean is that of the embeddings, position by position: the numbers are averaged exactly. What the model
computes is not linear in them, and two devices' prompts that do the same in another order have a mean that does neither.
As all begin a round from the same prompt, it is near where each went only a little way.
"""

# P virtual tokens, H hidden size

from __future__ import annotations

import numpy as np

from fedlora.family import DecoderShape, ModelShape
from fedlora.lora.adapter import Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import Weight
from fedlora.lora.kinds.virtual import WORD, VirtualTokens


class Prompt(VirtualTokens):
    name, title = "prompt", "prompt tuning"
    rate = 30.0
    keys = frozenset({"num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text"})
    mean = "of the embeddings by position: the numbers exactly, near the mean of what they do, not equal"
    peft_type, peft_mark = "PROMPT_TUNING", "peft_type is 'PROMPT_TUNING'"
    size = "the virtual tokens and the hidden size"

    def width(self, model: DecoderShape) -> int:
        return model.hidden_size

    def peft_sizes(self, model: DecoderShape) -> dict[str, int]:
        return {**super().peft_sizes(model), "token_dim": model.hidden_size}

    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        """RANDOM, as PEFT has it; the others take the base's embeddings: `base/prompt_start.py`."""
        shape = self.shapes(config, model)[WORD]
        return {WORD: generator.standard_normal(shape, np.float32)}
