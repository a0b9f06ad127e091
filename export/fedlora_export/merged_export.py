"""Export one adapter folded into its base, as a base of its own, and tell what that costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedlora.base.merging import write_merged
from fedlora.base.pack import MANIFEST, BasePack, open_pack
from fedlora.errors import ConfigError
from fedlora.family import DecoderShape
from fedlora.files.atomic import whole_directory
from fedlora.lora.adapter import Adapter

from fedlora_export.export import ExportedGraph, export_base, is_folder_of, write_graphs
from fedlora_export.graph.packed_layers import INT8_ACCURACY
from fedlora_export.merge import MergeLoss, merge_loss
from fedlora_export.merge_difference import MergeDifference, merge_difference


def export_merged(
    base: BasePack, adapter: Adapter, output: Path, *, accuracy_level: int = INT8_ACCURACY, replace: bool = False
) -> tuple[ExportedGraph, MergeLoss | MergeDifference]:
    """Write the pack of `base` with `adapter` folded into it, and its graph, into a new folder `output`.

    The second value is what it costs against the base with the adapter apart; an encoder writes no text: its scores differ.
    Raises GraphError, ConfigError, AdapterError where the merged weights are not finite, AdapterMismatchError.
    """
    if is_folder_of(base, output):
        raise ConfigError(f"{output}: the base's own folder, which a merged base would replace; name another output")
    with whole_directory(output, replace=MANIFEST if replace else None) as aside:
        write_merged(base, adapter, aside)
        (graph,) = write_graphs(open_pack(aside), ["base"], accuracy_level)
        with tempfile.TemporaryDirectory(prefix=".unmerged.", dir=aside.parent) as beside:
            (apart,) = export_base(base, Path(beside) / "model", accuracy_level=accuracy_level)
            is_decoder = isinstance(base.model, DecoderShape)
            cost = (merge_loss if is_decoder else merge_difference)(apart.path, base, adapter, graph.path)
    return graph.moved_to(output), cost
