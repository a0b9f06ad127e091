"""Measure a base, with an adapter or without, on data: in torch or in the exported graph, the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.base.pack import BasePack, find_pack, open_pack
from fedlora.config.sections import FieldNames
from fedlora.counted import counted
from fedlora.data.examples import Completion, MultipleChoice
from fedlora.errors import ConfigError, DataError
from fedlora.family import DecoderShape, ModelShape
from fedlora.wire.choice_counts import ChoiceCounts
from fedlora_client.data.encoder_windows import label_windows
from fedlora_client.data.encoding import ExampleEncoder
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows, read_windows
from fedlora_client.evaluation.answers import Answer, answered
from fedlora_client.evaluation.choices import choice_requests, count_choices
from fedlora_client.evaluation.scorer import Scorer, TorchScorer
from fedlora_client.model import open_model
from fedlora_client.ops.compute import choose_compute

from fedlora_simulations.evaluation.adapters import AdapterPlace, read_adapter
from fedlora_simulations.evaluation.records import Measured, read_measured

LENGTH = 512  # tokens of a window, where nothing else is told and the base has so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be measured."""

    model: str  # a base pack
    data: Path
    adapter: AdapterPlace | None = None
    graph: str = ""  # the folder of an exported graph, to compute in it
    fields: FieldNames = field(default_factory=FieldNames)
    length: int = 0  # tokens of a window; 0: the run's, or LENGTH
    limit: int = 0  # examples; 0: all
    prompt: str = ""  # around the records' prompts
    answers: bool = False  # generate them too
    max_tokens: int = 256  # of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured."""

    base: str  # its fingerprint
    adapter: str  # "" for the base alone
    server_round: int  # 0 where the adapter is no run's
    runtime: str
    files: tuple[str, ...]
    examples: int
    cut_examples: int
    left_out_examples: int
    unit: str  # of the loss: token, or text
    measured: int  # tokens, or texts
    loss: float  # mean nats of each
    scores: Mapping[str, float] = field(default_factory=dict)  # of labels, choices and generated answers
    questions: int = 0  # of multiple choice
    answers: tuple[Answer, ...] = ()
    notices: tuple[str, ...] = ()

    def numbers(self) -> dict[str, float]:
        """{measure: value}, and the standard error of each that is a share of examples."""
        found = {"loss": self.loss}
        if self.unit == "token":
            found["perplexity"] = math.exp(min(self.loss, 700.0))
        counts = {"accuracy": self.measured, "exact": len(self.answers), "acc": self.questions}
        for name, value in self.scores.items():
            found[name] = value
            count = counts.get(name, counts.get(name.split("_")[0], 0))
            if count > 1:
                found[f"{name}_stderr"] = math.sqrt(value * (1 - value) / (count - 1))
        return found

    def told(self) -> dict[str, Any]:
        """For a program."""
        return {
            "base": self.base, "adapter": self.adapter, "round": self.server_round, "runtime": self.runtime,
            "files": list(self.files), "examples": self.examples, "cut_examples": self.cut_examples,
            "left_out_examples": self.left_out_examples, "unit": self.unit, "measured": self.measured,
            "questions": self.questions, "answers": len(self.answers), **self.numbers(),
        }  # fmt: skip


def evaluate(order: Order) -> Evaluation:
    """Raises FedloraError."""
    base = open_pack(find_pack(order.model))
    data = read_measured(order.data, order.fields, template=order.prompt, limit=order.limit)
    scorer, runtime, base = _scorer(order, base)
    windows = _windows(base, scorer.shape, data, _length(order, base), str(order.data))
    measured = scorer.scored(windows).measured(windows, scorer.shape)
    choices, answers = _choices(scorer, base, data, order), _answers(scorer, base, data, order)
    scores = {**measured.scores, **choices.scores()}
    if answers:
        scores["exact_match_strict"] = sum(answer.strict for answer in answers) / len(answers)
        scores["exact_match_flexible"] = sum(answer.flexible for answer in answers) / len(answers)
    return Evaluation(
        base=base.fingerprint, adapter=str(order.adapter.path) if order.adapter else "",
        server_round=order.adapter.server_round if order.adapter else 0, runtime=runtime, files=data.files,
        examples=windows.examples, cut_examples=windows.truncated, left_out_examples=windows.skipped,
        unit="token" if isinstance(base.model, DecoderShape) else "text", measured=measured.tokens, loss=measured.loss,
        scores=scores, questions=choices.questions, answers=tuple(answers), notices=data.notices,
    )  # fmt: skip


def _scorer(order: Order, base: BasePack) -> tuple[Scorer, str, BasePack]:
    """(what computes, what that is called, the pack that it computes with)"""
    if order.graph:
        from fedlora_simulations.evaluation.graph_scorer import GraphScorer, graph_base  # with ONNX Runtime

        base = graph_base(order.graph, base)
        in_graph = GraphScorer(base, order.adapter.path if order.adapter else None)
        return in_graph, in_graph.called, base
    adapter = read_adapter(order.adapter.path, base) if order.adapter else None
    model = open_model(base, choose_compute("float32"))
    return TorchScorer(model, adapter), f"torch, {model.compute}", base


def _length(order: Order, base: BasePack) -> int:
    of_run = order.adapter.config.train.sequence_length if order.adapter and order.adapter.config else 0
    return order.length or of_run or min(LENGTH, base.model.max_positions)


def _windows(base: BasePack, shape: ModelShape, data: Measured, length: int, where: str) -> Windows:
    if isinstance(shape, DecoderShape):
        return read_windows(data.examples, base.directory, shape, length, where)
    return label_windows(data.examples, open_tokenizer(base.directory), shape, length, where)


def _choices(scorer: Scorer, base: BasePack, data: Measured, order: Order) -> ChoiceCounts:
    questions = [example for example in data.examples if isinstance(example, MultipleChoice)]
    if not questions or not isinstance(base.model, DecoderShape):
        return ChoiceCounts()
    encoder = ExampleEncoder(tokenizer=open_tokenizer(base.directory), shape=base.model)
    return count_choices(scorer, questions, choice_requests(questions, encoder, str(order.data)))


def _answers(scorer: Scorer, base: BasePack, data: Measured, order: Order) -> list[Answer]:
    if not order.answers:
        return []
    if not isinstance(base.model, DecoderShape):
        raise ConfigError(f"--answers: {base.directory} is an encoder, which generates nothing; leave it out")
    questions = [example for example in data.examples if isinstance(example, Completion)]
    if len(questions) < len(data.examples):
        raise DataError(
            f"{order.data}: {len(data.examples) - len(questions)} of {counted(len(data.examples), 'example')} have no "
            "prompt with a "
            "completion, which --answers needs; say what the fields are called in data.fields, or leave it out"
        )
    return answered(scorer, questions, open_tokenizer(base.directory), str(order.data), order.max_tokens)
