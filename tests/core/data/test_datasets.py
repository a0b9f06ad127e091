"""How data sets are found, and how a text is split."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
from fedlora import plugins
from fedlora.data.datasets import DATASETS, DeviceData, find_dataset, split_lines
from fedlora.errors import ConfigError, MissingExtraError
from hypothesis import given
from hypothesis import strategies as st


def test_an_unknown_data_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"data.name: no data set 'wikipedia'; there is .*files.*stdlib"):
        find_dataset("wikipedia")


def test_a_data_set_whose_part_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("far", "fedlora_not_there.far:far", DATASETS.group)
    monkeypatch.setattr(plugins, "_installed", lambda group, folders: (point,))
    with pytest.raises(MissingExtraError, match=r"data set 'far' needs a part that is not installed: .*not_there"):
        find_dataset("far")


@given(lines=st.lists(st.text("abcé ", max_size=8), max_size=30), end=st.sampled_from(["", "\n"]))
def test_the_two_parts_are_the_text_cut_at_the_end_of_a_line(lines: list[str], end: str) -> None:
    text = "\n".join(lines) + end
    train, held_out = split_lines(text)
    assert train + held_out == text
    assert not held_out or train.endswith("\n")


def test_a_tenth_of_a_text_of_many_lines_is_held_out() -> None:
    train, held_out = split_lines("line\n" * 1000)
    assert (len(train), len(held_out)) == (4500, 500)


def test_a_text_of_one_line_is_all_for_training() -> None:
    assert split_lines("one line only") == ("one line only", "")


def test_bytes_are_counted_in_utf8() -> None:
    assert DeviceData(name="d", train=("é", "ab"), held_out=("zzz",)).train_bytes == 4
