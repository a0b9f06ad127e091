"""Dropout by seed: a mask is the same whenever it is asked for, and another one everywhere else."""

from __future__ import annotations

import pytest
import torch
from fedlora_client.layers.dropout import SeededDropout
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.plain_ops import PlainOps

SHAPE = (400, 300)
FLOAT32, BFLOAT16 = (Compute(torch.device("cpu"), dtype, PlainOps()) for dtype in (torch.float32, torch.bfloat16))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("compute", [FLOAT32, BFLOAT16], ids=str)
def test_a_mask_drops_its_share_and_scales_what_is_left(rate: float, compute: Compute) -> None:
    mask = SeededDropout(rate, (1,), compute)("m", *SHAPE)
    assert mask is not None
    assert mask.dtype == compute.dtype
    kept = torch.tensor(1.0).to(compute.dtype) / (1 - rate)
    assert set(mask.flatten().tolist()) == {0.0, float(kept)}
    # Six standard deviations of the mean of 120,000 draws.
    off = 6 * (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(float((mask == 0).double().mean()) - rate) < off
    assert bool((mask == 0).any(0).all())  # no column is spared


def test_without_a_rate_there_is_no_mask() -> None:
    assert SeededDropout(0.0, (1,), FLOAT32).of(3, 0)("m", *SHAPE) is None


def test_a_mask_depends_on_seed_step_part_and_module_and_on_nothing_else() -> None:
    masks = [
        SeededDropout(0.5, (seed,), FLOAT32).of(step, part)(module, *SHAPE)
        for seed in (1, 2)
        for step in (0, 1)
        for part in (0, 1)
        for module in ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    ]
    torch.manual_seed(5)  # what others draw does not matter
    again = SeededDropout(0.5, (1,), FLOAT32).of(0, 0)("model.layers.0.mlp.up_proj", *SHAPE)
    assert again is not None
    assert masks[0] is not None
    assert torch.equal(again, masks[0])
    for number, mask in enumerate(masks):
        for other in masks[:number]:
            assert mask is not None
            assert other is not None
            agreement = float((mask == other).double().mean())
            assert abs(agreement - 0.5) < 6 * (0.25 / mask.numel()) ** 0.5  # as two fair coins agree


def test_drawing_a_mask_leaves_torchs_own_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SeededDropout(0.5, (1,), FLOAT32).of(0, 0)("m", *SHAPE)
    assert torch.equal(torch.rand(3), expected)
