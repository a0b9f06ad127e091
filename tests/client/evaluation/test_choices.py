"""Multiple choice by likelihood, held against lm-eval's own numbers and against transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fedlora.base.pack import BasePack, open_pack
from fedlora.cli import commands
from fedlora.config.sections import FieldNames
from fedlora.data.examples import MultipleChoice
from fedlora.errors import DataError
from fedlora.lora.adapter import Adapter
from fedlora.wire.choice_counts import ChoiceCounts
from fedlora_client.data.encoding import ExampleEncoder, Pairs
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.evaluation import choices as module
from fedlora_client.evaluation.choices import choice_requests, count_choices, counted
from fedlora_client.evaluation.ends import Ends
from fedlora_client.evaluation.scorer import TorchScorer
from fedlora_client.model import open_model
from fedlora_client.ops.compute import choose_compute
from fedlora_client.records.data_file import read_file
from fedlora_client.training.measuring import Scored

from tests.reference.oracles import peft_oracle
from tests.tiny.adapters import random_adapter

FOLDER = Path(__file__).parent
QUESTIONS = [
    MultipleChoice("Which colour is the sky?", ("blue", "a very dark green", "ünï"), 0),
    MultipleChoice("Say it:  ", ("yes", "no"), 1),
    MultipleChoice("a" * 80, ("long", "prompt"), 1),
]


def encoder_of(base: BasePack) -> ExampleEncoder:
    return ExampleEncoder(tokenizer=open_tokenizer(base.directory), shape=base.shape)


class Recorded:
    """A scorer that keeps what it found for each window."""

    def __init__(self, scorer: TorchScorer) -> None:
        self._scorer, self.shape = scorer, scorer.shape
        self.found: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def scored(self, windows: Windows) -> Scored:
        scored = self._scorer.scored(windows)
        for row, nats in enumerate(scored.nats.tolist()):
            text = windows.starts[row] == 0
            self.found[tuple(windows.inputs[row, text].tolist()), tuple(windows.targets[row, text].tolist())] = -nats
        return scored

    def continued(self, prompts: Sequence[Sequence[int]], most: int, ends: Ends) -> list[list[int]]:
        return self._scorer.continued(prompts, most, ends)


def likelihoods(
    base: BasePack, questions: Sequence[MultipleChoice], adapter: Adapter | None = None
) -> tuple[ChoiceCounts, list[list[float]]]:
    recorded = Recorded(TorchScorer(open_model(base, choose_compute("float32", device="cpu")), adapter))
    counts = count_choices(recorded, questions, choice_requests(questions, encoder_of(base), "test"))
    context = base.shape.max_positions
    of = [[module._cut(pairs, context, "") for pairs in encoder_of(base).choice_pairs(one, "")] for one in questions]
    return counts, [[recorded.found[tuple(p.inputs.tolist()), tuple(p.targets.tolist())] for p in each] for each in of]


def test_scores_and_likelihoods_are_those_of_lm_eval(shared: Path, tmp_path: Path) -> None:
    recorded = json.loads((FOLDER / "lm_eval.json").read_text())
    words = ["pack", str(shared / "models" / "stories260K"), "-o", str(tmp_path / "pack")]
    CliRunner().invoke(commands, words, catch_exceptions=False)
    base = open_pack(tmp_path / "pack")
    examples = read_file(FOLDER / "questions.jsonl", FieldNames()).all
    questions = [example for example in examples if isinstance(example, MultipleChoice)]
    counts, found = likelihoods(base, questions)
    assert counts.scores() == pytest.approx(recorded["scores"])
    assert len(set(recorded["scores"].values())) > 1  # a length that was left out would be seen
    for ours, theirs in zip(found, recorded["likelihoods"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_likelihoods_with_an_adapter_are_those_of_peft(base: BasePack) -> None:
    adapter = random_adapter(base)
    model, _ = peft_oracle(base, adapter)
    _, found = likelihoods(base, QUESTIONS, adapter)
    for question, ours in zip(QUESTIONS, found, strict=True):
        for choice, likelihood in zip(question.choices, ours, strict=True):
            prompt = question.prompt.rstrip()
            read = [256, *prompt_ids(base, prompt)]  # <s>
            whole = [256, *prompt_ids(base, question.prompt + " " + choice)]
            shown = whole[-(base.shape.max_positions + 1) :]
            learned = len(whole) - len(read)
            with torch.no_grad():
                logits = model(torch.tensor([shown[:-1]])).logits[0].double().log_softmax(-1)
            expected = sum(float(logits[place - 1, shown[place]]) for place in range(len(shown) - learned, len(shown)))
            assert likelihood == pytest.approx(expected, abs=2e-4)


def prompt_ids(base: BasePack, text: str) -> list[int]:
    ids: list[int] = open_tokenizer(base.directory).encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize(
    ("likely", "chosen"),
    [
        ([-4.0, -3.0], {"acc": 1, "acc_norm": 0, "acc_bytes": 0}),  # by its length the longer one
        ([-2.0, -3.5], {"acc": 0, "acc_norm": 0, "acc_bytes": 1}),  # and by its bytes the one with more of them
        ([-3.0, -3.0], {"acc": 0, "acc_norm": 0, "acc_bytes": 1}),  # alike: the first
    ],
)  # fmt: skip
def test_a_likelihood_counts_as_it_is_per_character_and_per_byte(likely: list[float], chosen: dict[str, int]) -> None:
    choices = ("abcd", "éé")
    for answer in (0, 1):
        counts = counted(MultipleChoice("?", choices, answer), likely)
        got = {"acc": counts.acc, "acc_norm": counts.acc_norm, "acc_bytes": counts.acc_bytes}
        assert counts.questions == 1
        assert got == {name: int(number == answer) for name, number in chosen_of(choices, likely).items()}
    assert chosen_of(choices, likely)["acc"] == chosen["acc"]


def chosen_of(choices: tuple[str, ...], likely: list[float]) -> dict[str, int]:
    """lm-eval's `process_results`, word for word."""
    completion_len = np.array([float(len(i)) for i in choices])
    byte_length = np.array([float(len(i.encode("utf-8"))) for i in choices])
    lls = np.array(likely)
    return {
        "acc": int(np.argmax(lls)), "acc_norm": int(np.argmax(lls / completion_len)),
        "acc_bytes": int(np.argmax(lls / byte_length)),
    }  # fmt: skip


def test_counts_add_up_and_none_has_no_score() -> None:
    one = ChoiceCounts(questions=2, acc=1, acc_norm=2)
    assert (one + one).scores() == {"acc": 0.5, "acc_norm": 1.0, "acc_bytes": 0.0}
    assert ChoiceCounts().scores() == ChoiceCounts().told() == {}


def test_counts_come_as_they_were_told_and_what_cannot_be_is_none() -> None:
    one = ChoiceCounts(questions=5, acc=1, acc_norm=5, acc_bytes=2)
    assert ChoiceCounts.read(one.told()) == one
    assert ChoiceCounts.read(one.told("test/"), "test/") == one
    assert ChoiceCounts.read({}) is None
    for wrong in (
        {"choices/acc": 6.0},
        {"choices/acc": float("nan")},
        {"choices/acc": 0.5},
        {"choices/questions": -1.0},
    ):
        assert ChoiceCounts.read({**one.told(), **wrong}) is None


def test_a_long_prompt_loses_its_beginning_and_a_choice_that_is_too_long_is_refused() -> None:
    pairs = Pairs(np.arange(9), np.array([-100] * 7 + [1, 2]))
    assert module._cut(pairs, 4, "here").inputs.tolist() == [5, 6, 7, 8]
    with pytest.raises(DataError, match="here: a choice has 2 tokens; the base's context is 1"):
        module._cut(pairs, 1, "here")
