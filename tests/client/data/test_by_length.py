"""Texts of like length are measured together."""

from __future__ import annotations

import torch
from fedlora_client.data.by_length import parts_by_length
from fedlora_client.data.windows import Windows
from hypothesis import given
from hypothesis import strategies as st

LONGEST = 16


def texts_of(lengths: list[int]) -> Windows:
    places = torch.arange(LONGEST).repeat(len(lengths), 1)
    starts = torch.where(places < torch.tensor(lengths)[:, None], 0, places)
    return Windows(torch.zeros_like(starts), torch.zeros_like(starts), starts)


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=40), st.integers(1, 3 * LONGEST))
def test_every_text_comes_once_and_a_part_is_as_large_as_it_may_be(lengths: list[int], tokens: int) -> None:
    parts = [rows.tolist() for rows in parts_by_length(texts_of(lengths), tokens)]
    in_order = [row for rows in parts for row in rows]
    assert sorted(in_order) == list(range(len(lengths)))
    assert [lengths[row] for row in in_order] == sorted(lengths)
    for rows, following in zip(parts, [*parts[1:], None], strict=True):
        assert len(rows) == 1 or len(rows) * lengths[rows[-1]] <= tokens
        if following:
            assert (len(rows) + 1) * lengths[following[0]] > tokens
