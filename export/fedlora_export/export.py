"""Write a pack's graph beside its weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx_ir as ir
from fedlora.atomic import whole_directory, whole_file
from fedlora.errors import GraphError
from fedlora.pack import MANIFEST, BasePack, open_pack, read_manifest
from fedlora.slots import GRAPH

from fedlora_export.check import check_graph
from fedlora_export.decoder import build_decoder


def export_base(
    base: BasePack, output: Path | None = None, *, replace: bool = False
) -> tuple[Path, dict[str, float] | None]:
    """Write decoder.onnx into the pack's folder, or the pack and its graph into a new folder `output`.

    ONNX Runtime follows no link and no path out of the graph's folder: the graph and the weights must lie together.
    Returns the graph's path and the differences that `check_graph` found. Raises GraphError, ConfigError.
    """
    if output is not None and os.path.abspath(output) == os.path.abspath(base.directory):
        output = None
    if output is None:
        return base.directory / GRAPH, _write_graph(base)
    with whole_directory(output, replace=MANIFEST if replace else None) as aside:
        for name in (MANIFEST, *read_manifest(base.directory)["files"]):
            shutil.copyfile(base.directory / name, aside / name)
        differences = _write_graph(open_pack(aside))
    return output / GRAPH, differences


def _write_graph(base: BasePack) -> dict[str, float] | None:
    with whole_file(base.directory / GRAPH) as aside:
        ir.save(build_decoder(base), aside)
        try:
            return check_graph(aside, base)
        except GraphError as error:
            raise GraphError(f"{GRAPH} of {base.source} was not written: {error}; please report this") from None
