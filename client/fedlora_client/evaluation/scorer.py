"""What is asked of a model that is evaluated, whichever runtime computes it: nats of windows, and what it says next."""

# M windows, S sequences, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from fedlora.family import DecoderShape, EncoderShape, ModelShape
from fedlora.family.encoder import with_head_of
from fedlora.lora.adapter import Adapter

from fedlora_client.data.windows import Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.evaluation.ends import Ends
from fedlora_client.model import Model
from fedlora_client.training.measuring import Scored, length_with, scored_with

_ROWS = 4096  # tokens that are read at a time where answers are generated


class Scorer(Protocol):
    """A base with an adapter, or alone."""

    @property
    def shape(self) -> ModelShape:
        """The base's, with the labels of the adapter's head where it has one of its own."""

    def scored(self, windows: Windows) -> Scored:
        """The nats of what is learned in each window, and of an encoder the label of each text."""

    def continued(self, prompts: Sequence[Sequence[int]], most: int, ends: Ends) -> list[list[int]]:
        """Up to `most` tokens that follow each prompt, the likeliest one each time, until `ends` has enough."""


class TorchScorer:
    """The trainer's own model."""

    def __init__(
        self, model: Model, adapter: Adapter | None, *, frozen: Adapter | None = None, frugal: bool = False
    ) -> None:
        """`frozen` stands beside the adapter; `frugal` takes as little memory as can be."""
        self._model, self._lora = model, None if adapter is None else model.lora(adapter, frozen=frozen)
        shape, self._frugal = model.shape, frugal
        self._shape = with_head_of(shape, adapter.extras) if isinstance(shape, EncoderShape) and adapter else shape

    @property
    def shape(self) -> ModelShape:
        return self._shape

    def scored(self, windows: Windows) -> Scored:
        micro_batch, memory_plan = self._model.cut_measurement(length_with(self._lora, windows), frugal=self._frugal)
        return scored_with(self._model, self._lora, windows, self._model.workspace(), micro_batch, memory_plan)

    def continued(self, prompts: Sequence[Sequence[int]], most: int, ends: Ends) -> list[list[int]]:
        """Each step reads everything again: the trainer keeps no keys and values between calls."""
        assert isinstance(self._model, Decoder)
        answers: list[list[int]] = [[] for _ in prompts]
        in_order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        while in_order:
            longest = len(prompts[in_order[-1]]) + most
            several = max(1, _ROWS // longest)
            batch, in_order = in_order[-several:], in_order[:-several]
            for _ in range(most):
                for number, token in zip(batch, self._next(prompts, answers, batch), strict=True):
                    answers[number].append(token)
                batch = [number for number in batch if not ends.are_in(answers[number])]
                if not batch:
                    break
        return answers

    def _next(self, prompts: Sequence[Sequence[int]], answers: list[list[int]], batch: list[int]) -> list[int]:
        """The likeliest next token of each."""
        assert isinstance(self._model, Decoder) and isinstance(self._model.shape, DecoderShape)
        texts = [[*prompts[number], *answers[number]] for number in batch]
        lengths = torch.tensor([len(text) for text in texts])
        longest = int(lengths.max())
        tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        places = torch.arange(longest)
        starts = torch.where(places < lengths[:, None], 0, places)
        with torch.no_grad():
            scores = self._model.next_scores(tokens, starts, lengths, self._lora, self._model.workspace())
        likeliest: list[int] = np.argmax(scores.float().cpu().numpy(), 1).tolist()
        return likeliest
