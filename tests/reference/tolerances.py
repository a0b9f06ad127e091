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
# One operation that computes in float32 (atol: a sum of a few dozen numbers) and rounds its result once, to the dtype.
ONE_OPERATION: dict[str, Tolerance] = {
    "float32": Tolerance(rtol=2**-22, atol=2e-6),
    "bfloat16": Tolerance(rtol=1.001 * 2**-8, atol=2e-6),
}
# In bfloat16 the gradients' mean relative error, against float64, is at most this many times ...
TIMES_PEFTS_ERROR = 1.0  # ... that of transformers and PEFT in bfloat16 (measured: 0.66 to 0.84)
TIMES_OWN_ERROR = 1.2  # ... our own for the same adapter, computed in another way
