"""What merging an adapter costs an encoder: how far its scores are off, beside how far the adapter moves them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter

from fedlora_export.checks.check import open_session
from fedlora_export.checks.graph_runs import run_graph
from fedlora_export.checks.torch_logits import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDifference:
    """Largest differences of scores, or of embeddings, over two random texts."""

    merged: float  # of the merged graph from the base's with the adapter apart
    adapter: float  # that the adapter makes

    def __str__(self) -> str:
        return f"{self.merged:.2e} off the scores with the adapter apart, which the adapter moves by {self.adapter:.2e}"


def merge_difference(base_graph: Path, base: BasePack, adapter: Adapter, merged_graph: Path) -> MergeDifference:
    """`base_graph` is the base's in the profile compat, `merged_graph` the merged pack's in the profile base."""
    sample, apart = Sample.of(base), open_session(base_graph)
    tokens, mask = sample.tokens, sample.mask
    plain, _ = run_graph(apart, base, "compat", tokens, mask, [None, None])
    adapted, _ = run_graph(apart, base, "compat", tokens, mask, [adapter, adapter])
    merged, _ = run_graph(open_session(merged_graph), base, "base", tokens, mask, [None, None])
    return MergeDifference(merged=float(np.abs(merged - adapted).max()), adapter=float(np.abs(adapted - plain).max()))
