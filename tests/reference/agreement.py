"""Whether two results are one, but for rounding."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from tests.reference.tolerances import TOLERANCE


def assert_close(got: object, expected: object, dtype: Literal["bfloat16", "float32", "float64"] = "float32") -> None:
    """The largest difference is rounding, as measured by the largest expected value, which is not 0."""
    left, right = (
        np.asarray(value.detach().double() if isinstance(value, torch.Tensor) else value) for value in (got, expected)
    )
    assert left.shape == right.shape
    scale = float(np.abs(right).max())
    assert scale > 0
    assert float(np.abs(left - right).max()) <= TOLERANCE[dtype]["rtol"] * scale
