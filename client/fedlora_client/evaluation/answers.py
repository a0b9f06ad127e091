"""Exact match of generated answers: each prompt is answered greedily, and the number in it held against the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.base.tokenizer import begun
from fedlora.data.examples import Completion
from fedlora.errors import ConfigError, DataError
from fedlora.family import DecoderShape
from tokenizers import Tokenizer

from fedlora_client.data.encoding import checked_ids
from fedlora_client.data.tokenizer import token_ids
from fedlora_client.evaluation import gsm8k
from fedlora_client.evaluation.ends import Ends
from fedlora_client.evaluation.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was generated for one prompt."""

    text: str
    strict: bool  # whether the number after #### is the reference's
    flexible: bool  # whether the last number is


def answered(
    scorer: Scorer, questions: Sequence[Completion], tokenizer: Tokenizer, where: str, most: int
) -> list[Answer]:
    """An answer of at most so many tokens to each prompt; a prompt that leaves no room for it loses its beginning.

    Raises DataError for a reference without its number; ConfigError where the base's context has no room for an answer.
    """
    shape = scorer.shape
    assert isinstance(shape, DecoderShape)
    room = shape.max_positions - most
    if room < 1:
        raise ConfigError(
            f"--max-tokens is {most}; the base's context is {shape.max_positions} tokens, with the prompt: lower it"
        )
    prompts = []
    for number, question in enumerate(questions, 1):
        here = f"{where}: example {number}"
        if gsm8k.MARK not in question.completion:
            raise DataError(
                f"{here}: its completion has no {gsm8k.MARK!r} before the answer's number, by which answers are compared; "
                "give references as GSM8K has them, or leave --answers out"
            )
        ids = checked_ids(token_ids(tokenizer, question.prompt), shape.vocab_size, here)
        tokens = begun(shape, ids.tolist())[-room:]
        if not tokens:
            raise DataError(f"{here}: its prompt is empty; remove the record or give it a question")
        prompts.append(tokens)
    ends = Ends(tokenizer=tokenizer, tokens=shape.stop_token_ids, texts=gsm8k.ENDS)
    return [
        judged(ends.text(tokens), question.completion)
        for tokens, question in zip(scorer.continued(prompts, most, ends), questions, strict=True)
    ]


def judged(text: str, reference: str) -> Answer:
    return Answer(
        text=text,
        strict=gsm8k.is_match(gsm8k.strict(text), reference),
        flexible=gsm8k.is_match(gsm8k.flexible(text), reference),
    )
