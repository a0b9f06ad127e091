"""How the rows of a batch are rotated, and that the tables for it are as small as they can be."""

# S sequences, T tokens of each, N = S T rows, D head size

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.errors import ConfigError
from fedlora.family import Rotary
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.decoder.dense_decoder import dense_logits
from fedlora_client.decoder.rotary import ropes_of
from fedlora_client.ops.compute import Compute

from tests.reference.dense import dense_weights, random_problem
from tests.tiny.families import family_pack

TWO_ROTATIONS = "gemma3"  # one of the layers with a window, one of the others
LENGTH = 11


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of every table that is made from here on."""
    made: list[int] = []
    table = Rotary.table

    def counted(self: Rotary, positions: int) -> Any:
        made.append(positions)
        return table(self, positions)

    monkeypatch.setattr(Rotary, "table", counted)
    return made


def test_a_row_is_rotated_by_its_place_in_its_example() -> None:
    shape = family_pack(TWO_ROTATIONS).shape
    starts = torch.tensor([[0, 0, 2, 2, 2], [0, 0, 0, 0, 4]])
    ropes = ropes_of(shape, starts)
    assert len(ropes) == shape.num_layers
    for layer, (cos, sin) in enumerate(ropes):
        angles = np.outer([0, 1, 0, 1, 2, 0, 1, 2, 3, 0], shape.rotary_of(layer).frequencies)
        np.testing.assert_allclose(cos.numpy(), np.cos(angles), atol=1e-7)
        np.testing.assert_allclose(sin.numpy(), np.sin(angles), atol=1e-7)


def test_layers_of_one_rotation_share_their_rope() -> None:
    shape = family_pack(TWO_ROTATIONS).shape
    ropes = ropes_of(shape, torch.zeros(1, 3, dtype=torch.int64))
    assert len({id(rope) for rope in ropes}) == len({shape.rotary_of(layer) for layer in range(shape.num_layers)}) == 2


def test_more_tokens_than_the_context_are_refused() -> None:
    shape = replace(family_pack(TWO_ROTATIONS).shape, max_positions=4)
    with pytest.raises(ConfigError, match="a sequence has 5 tokens; the base's context is 4"):
        ropes_of(shape, torch.zeros(1, 5, dtype=torch.int64))


def test_a_decoder_makes_tables_of_as_many_positions_as_a_batch_has(compute: Compute, tables: list[int]) -> None:
    base = family_pack(TWO_ROTATIONS)
    decoder = Decoder(base, compute)
    assert tables == []
    decoder.logits(random_problem(base, 2, LENGTH).tokens)
    assert tables == [LENGTH] * 2


def test_the_dense_decoder_makes_each_table_once_a_pass(tables: list[int]) -> None:
    base = family_pack(TWO_ROTATIONS)
    problem = random_problem(base, 2, LENGTH)
    dense_logits(base.shape, dense_weights(base), problem.tokens, problem.starts)
    assert tables == [LENGTH] * 2
