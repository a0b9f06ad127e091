"""The rotation of an adapter's factors that brings them closest to those of another: it changes no product."""

# O out features, I in features, R rank

from __future__ import annotations

import numpy as np
from fedlora.adapter import Adapter, LoraPair


def rotated_onto(adapter: Adapter, target: Adapter) -> Adapter:
    """(B Q, Q^T A) with the orthogonal Q [R, R] that minimises ||B Q - B_0||_F^2 + ||Q^T A - A_0||_F^2, module by module.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 31, 1966): Q = U V^T of the SVD of B^T B_0 + A A_0^T.
    """
    pairs = {}
    for module, pair in adapter.pairs.items():
        onto = target.pairs[module]
        overlap = pair.lora_B.T @ onto.lora_B + pair.lora_A @ onto.lora_A.T  # [R, R]
        u, _, vt = np.linalg.svd(overlap.astype(np.float64))
        q = (u @ vt).astype(np.float32)
        pairs[module] = LoraPair(q.T @ pair.lora_A, pair.lora_B @ q)
    return Adapter(adapter.config, pairs)
