"""How far two results may lie apart, by the narrowest dtype on the way: (relative, absolute to values of size 1)."""

from __future__ import annotations

from typing import TypedDict


class Tolerance(TypedDict):
    """Keyword arguments of `numpy.testing.assert_allclose`."""

    rtol: float
    atol: float


# A few hundred roundings, each half a unit in the last place of the dtype.
TOLERANCE: dict[str, Tolerance] = {
    "float64": Tolerance(rtol=1e-10, atol=1e-10),
    "float32": Tolerance(rtol=1e-4, atol=1e-5),
    "float16": Tolerance(rtol=2e-3, atol=1e-3),
    "bfloat16": Tolerance(rtol=1e-2, atol=1e-2),
}
