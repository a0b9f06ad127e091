"""Records of multiple choice: how an answer may be given, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.sections import FieldNames
from fedlora.data.examples import Completion, MultipleChoice, text_of
from fedlora.errors import DataError
from fedlora_client.records.data_file import read_file
from fedlora_client.records.record_forms import parse_record

ARC = {"text": ["three", "four"], "label": ["A", "B"]}


@pytest.mark.parametrize(
    ("choices", "answer", "number"),
    [
        (["3", "4"], 1, 1), (["3", "4"], "4", 1), (["3", "four"], "B", 1), (["x", "four"], "1", 1), (["1", "0"], "1", 0),
        (["a", "b"], "b", 1), (ARC, "B", 1), (ARC, "three", 0), (ARC, 0, 0),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2", 1),
    ],
)  # fmt: skip
def test_an_answer_is_a_number_a_text_a_label_or_a_letter(choices: Any, answer: Any, number: int) -> None:
    found = parse_record({"prompt": "2 + 2 =", "choices": choices, "answer": answer}).example
    assert isinstance(found, MultipleChoice)
    assert found.answer == number
    assert found.completion == Completion("2 + 2 =", f" {found.choices[number]}")
    assert text_of(found) == f"2 + 2 = {found.choices[number]}"


def test_fields_have_other_names_in_files_of_this_world(tmp_path: Path) -> None:
    fields = FieldNames(prompt="ctx", choices="endings", answer="label")
    (tmp_path / "a.jsonl").write_text(json.dumps({"ctx": "He", "endings": ["ran", "sat"], "label": "1", "ind": 4}))
    assert read_file(tmp_path / "a.jsonl", fields).all == (MultipleChoice("He", ("ran", "sat"), 1),)
    (tmp_path / "a.csv").write_text('prompt,choices,answer\nHe,"[""ran"", ""sat""]",1\n')
    assert read_file(tmp_path / "a.csv", FieldNames()).all == (MultipleChoice("He", ("ran", "sat"), 1),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"choices": ["a", "b"], "answer": 2}, "answer must be one of the choices: .*0 to 1.* got 2"),
        ({"choices": ["a", "b"], "answer": True}, "answer must be one of the choices"),
        ({"choices": ARC, "answer": "C"}, r"answer must be one of the choices: .*\(A, B\), got the string 'C'"),
        ({"choices": ["a", "a"], "answer": "a"}, "answer must be one of the choices"),
        ({"choices": ["a"], "answer": 0}, "choices must be from 2 to 100 texts, none of them empty, got 1"),
        ({"choices": ["a", " "], "answer": 0}, "choices must be from 2 to 100 texts, none of them empty"),
        ({"choices": "a, b", "answer": 0}, "choices must be a list of texts, got the string"),
        ({"choices": ["a", 3], "answer": 0}, "choices must be a string, got 3"),
        ({"choices": {"text": ["a"], "label": ["A", "B"]}, "answer": "A"}, "must be lists of one length"),
    ],
)
def test_what_is_no_question_is_refused_with_its_field(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_record({"prompt": "?", **record})
