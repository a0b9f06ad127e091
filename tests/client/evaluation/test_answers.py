"""Generated answers: GSM8K's rule as lm-eval has it, and greedy text as transformers generates it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.config.sections import FieldNames
from fedlora.data.examples import Completion
from fedlora.errors import ConfigError, DataError
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.evaluation import gsm8k
from fedlora_client.evaluation.answers import answered, judged
from fedlora_client.evaluation.ends import Ends
from fedlora_client.evaluation.scorer import TorchScorer
from fedlora_client.model import open_model
from fedlora_client.ops.compute import choose_compute
from fedlora_client.records.data_file import read_file

from tests.reference.oracles import peft_oracle
from tests.tiny.adapters import random_adapter

RECORDED = json.loads((Path(__file__).parent / "gsm8k.json").read_text())


@pytest.mark.parametrize(("text", "reference", "strict", "flexible"), RECORDED)
def test_an_answer_is_right_where_lm_eval_says_so(text: str, reference: str, strict: bool, flexible: bool) -> None:
    answer = judged(text, reference)
    assert (answer.strict, answer.flexible) == (strict, flexible)


def test_the_record_has_both_verdicts_of_both_rules() -> None:
    assert {(strict, flexible) for _, _, strict, flexible in RECORDED} == {
        (a, b) for a in (True, False) for b in (True, False)
    }


def test_every_reference_of_gsm8k_is_its_own_answer(shared: Path) -> None:
    fields = FieldNames(prompt="question", completion="answer")
    questions = read_file(shared / "data" / "gsm8k" / "test.jsonl.gz", fields).all
    assert len(questions) == 1319
    for question in questions:
        assert isinstance(question, Completion)
        assert gsm8k.is_match(gsm8k.strict(question.completion), question.completion)


def test_greedy_answers_are_those_of_transformers(base: BasePack) -> None:
    adapter = random_adapter(base)
    oracle, _ = peft_oracle(base, adapter)
    scorer = TorchScorer(open_model(base, choose_compute("float32", device="cpu")), adapter)
    prompts = [[256, 40, 41], [256, 50, 51, 52, 53, 54, 55], [256, 60]]
    ends = Ends(tokenizer=open_tokenizer(base.directory), tokens=base.shape.stop_token_ids)
    found = scorer.continued(prompts, 12, ends)
    for prompt, answer in zip(prompts, found, strict=True):
        tokens, expected = list(prompt), list[int]()
        while len(expected) < 12 and not (expected and expected[-1] in base.shape.stop_token_ids):
            with torch.no_grad():
                expected.append(int(oracle(torch.tensor([tokens])).logits[0, -1].argmax()))
            tokens.append(expected[-1])
        assert answer == expected
    assert len({tuple(answer) for answer in found}) > 1


def test_an_answer_ends_at_a_text_and_does_not_show_it(base: BasePack) -> None:
    tokenizer = open_tokenizer(base.directory)
    ends = Ends(tokenizer=tokenizer, tokens=(257,), texts=("Question:",))
    answer = tokenizer.encode("#### 7\nQuestion:", add_special_tokens=False).ids
    assert ends.are_in(answer)
    assert not ends.are_in(answer[:-1])
    assert ends.text(answer) == "#### 7\n"
    assert ends.text([*answer[:6], 257]) == "#### 7"


def test_what_cannot_be_answered_is_refused(base: BasePack) -> None:
    scorer = TorchScorer(open_model(base, choose_compute("float32", device="cpu")), None)
    tokenizer = open_tokenizer(base.directory)
    with pytest.raises(DataError, match="example 1: its completion has no '#### ' before the answer's number"):
        answered(scorer, [Completion("1 + 1", "2")], tokenizer, "file", 4)
    with pytest.raises(ConfigError, match="--max-tokens is 64; the base's context is 64 tokens"):
        answered(scorer, [Completion("1 + 1", "#### 2")], tokenizer, "file", 64)
    long = answered(scorer, [Completion("1" * 200, "#### 2")], tokenizer, "file", 4)  # its beginning is left out
    assert len(long) == 1
