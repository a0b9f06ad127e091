"""What an example is, how long it is, and what is none."""

from __future__ import annotations

import pytest
from fedlora.data.datasets import DeviceData, split_records
from fedlora.data.examples import Chat, ChatMessage, Completion, Example, TextRecord, size_bytes, text_of
from fedlora.errors import DataError
from hypothesis import given
from hypothesis import strategies as st

CHAT = Chat((ChatMessage("user", "Hé"), ChatMessage("assistant", "Ja")))


@pytest.mark.parametrize(
    ("example", "text"),
    [("é", "é"), (TextRecord("ab"), "ab"), (Completion("2 + 2 =", " 4"), "2 + 2 = 4"), (CHAT, "HéJa")],
    ids=["text", "document", "completion", "chat"],
)
def test_an_examples_text_is_what_it_says_and_is_counted_in_utf8(example: Example, text: str) -> None:
    assert text_of(example) == text
    assert size_bytes(example) == len(text.encode())


def test_a_devices_bytes_are_those_of_all_its_examples() -> None:
    data = DeviceData(name="d", train=("é", TextRecord("ab"), Completion("c", "d"), CHAT), held_out=("zzz",))
    assert data.train_bytes == 2 + 2 + 2 + 5


def test_a_document_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="text is empty; remove the record"):
        TextRecord("")


def test_a_completion_may_have_no_prompt_but_must_complete() -> None:
    assert Completion("", "Once").prompt == ""
    with pytest.raises(DataError, match="completion is empty, so there is nothing to learn"):
        Completion("2 + 2 =", "")


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ((), "none"),
        ((ChatMessage("user", "Hello"),), "user"),
        ((ChatMessage("system", "Be kind."), ChatMessage("user", "Hello"), ChatMessage("user", "?")), "system, user"),
        ((ChatMessage("user", "Hello"), ChatMessage("assistant", "")), "user, assistant"),
    ],
    ids=["empty", "user-only", "no-assistant", "silent-assistant"],
)
def test_a_chat_in_which_the_assistant_says_nothing_is_refused_with_its_roles(
    messages: tuple[ChatMessage, ...], roles: str
) -> None:
    with pytest.raises(DataError, match=rf"no message of the role 'assistant' with content.*\(roles: {roles}\)"):
        Chat(messages)


@given(st.integers(0, 200))
def test_the_last_tenth_of_the_records_is_held_out_and_one_of_two(count: int) -> None:
    records: tuple[Example, ...] = tuple(TextRecord(f"record {number}") for number in range(count))
    train, held_out = split_records(records)
    assert train + held_out == records
    assert len(held_out) == (0 if count < 2 else max(1, count // 10))
