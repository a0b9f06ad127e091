"""Multiple choice by likelihood: the answer is the choice whose tokens are the likeliest after the prompt.

    ll(c) = sum over the tokens of c of log p(token | prompt and the tokens before it)

    acc         argmax ll(c)
    acc_norm    argmax ll(c) / len(c)           the choice's length in characters, without the space before it
    acc_bytes   argmax ll(c) / len(c in UTF-8)

Tokens, cutting and lengths are those of lm-eval 0.4 (task type multiple_choice, target_delimiter " "); of two choices that
are equally likely the first counts. lm-eval puts a base's first token before a text with add_bos_token=True; here it
always stands there.
"""

# C choices, W windows, T tokens of the longest

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fedlora.data.examples import MultipleChoice
from fedlora.errors import DataError
from fedlora.wire.choice_counts import ChoiceCounts

from fedlora_client.data.encoding import IGNORED, ExampleEncoder, Pairs
from fedlora_client.data.windows import Windows
from fedlora_client.evaluation.scorer import Scorer

_ROWS = 8192  # tokens that are scored at a time


Questions = Sequence[MultipleChoice]


def choice_requests(questions: Questions, encoder: ExampleEncoder, where: str) -> tuple[Pairs, ...]:
    """What is asked for each choice of each question. Raises DataError for one of no token, or of more than the context."""
    return tuple(
        _cut(pairs, encoder.shape.max_positions, f"{where}: example {number}")
        for number, question in enumerate(questions, 1)
        for pairs in encoder.choice_pairs(question, f"{where}: example {number}")
    )


def count_choices(scorer: Scorer, questions: Questions, requests: Sequence[Pairs]) -> ChoiceCounts:
    """How many are answered right; `requests` are those of `choice_requests`."""
    likelihoods = np.empty(len(requests))
    for numbers in _alike([len(pairs) for pairs in requests]):
        likelihoods[numbers] = -scorer.scored(_windows([requests[number] for number in numbers])).nats
    counts, begin = ChoiceCounts(), 0
    for question in questions:
        end = begin + len(question.choices)
        counts += counted(question, likelihoods[begin:end].tolist())
        begin = end
    return counts


def counted(question: MultipleChoice, likelihoods: Sequence[float]) -> ChoiceCounts:
    """One question, whose C choices have these log-likelihoods."""
    ll = np.array(likelihoods)
    characters = np.array([len(choice) for choice in question.choices], np.float64)
    sizes = np.array([len(choice.encode()) for choice in question.choices], np.float64)
    chosen = {"acc": ll, "acc_norm": ll / characters, "acc_bytes": ll / sizes}
    return ChoiceCounts(questions=1, **{name: int(np.argmax(of) == question.answer) for name, of in chosen.items()})


def _cut(pairs: Pairs, context: int, where: str) -> Pairs:
    """The last `context` pairs: a long prompt loses its beginning."""
    learned = int((pairs.targets != IGNORED).sum())
    if learned > context:
        raise DataError(f"{where}: a choice has {learned} tokens; the base's context is {context}: shorten it")
    return Pairs(pairs.inputs[-context:], pairs.targets[-context:])


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of the requests, those of similar lengths together, as many as make `_ROWS` tokens with padding."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > _ROWS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _windows(requests: Sequence[Pairs]) -> Windows:
    """One each, padded at its end."""
    longest = max(map(len, requests))
    inputs = torch.zeros(len(requests), longest, dtype=torch.int64)
    targets, starts = torch.full_like(inputs, IGNORED), torch.arange(longest).repeat(len(requests), 1)
    for row, pairs in enumerate(requests):
        inputs[row, : len(pairs)] = torch.from_numpy(pairs.inputs)
        targets[row, : len(pairs)] = torch.from_numpy(pairs.targets)
        starts[row, : len(pairs)] = 0
    return Windows(inputs, targets, starts, examples=len(requests))
