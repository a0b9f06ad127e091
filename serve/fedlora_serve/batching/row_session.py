"""The session of a graph with independent rows, and how adapters reach it."""

from __future__ import annotations

from dataclasses import dataclass

import onnxruntime as ort
from fedlora.base.pack import EMBEDDED, BasePack, find_pack
from fedlora.errors import GraphError
from fedlora.exported.graph_manifest import GraphManifest
from fedlora.exported.profiles import graph_name
from fedlora.lora.output_scale import scale_shapes
from fedlora.native import BuildError
from fedlora.row_lora.library import row_lora

from fedlora_serve.batching.rows import CopiedAdapters, NumberedAdapters, RowAdapters
from fedlora_serve.session import open_graph


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSession:
    """What was opened. `lays_out_adapters`: their values have to be laid out (`fedlora.row_lora.layout`) for it."""

    manifest: GraphManifest
    session: ort.InferenceSession
    adapters: RowAdapters
    lays_out_adapters: bool


def open_rows(base: BasePack, *, threads: int = 0) -> RowSession:
    """The graph `kernel` where it is there and can run, or else `rows`. Raises GraphError."""
    kernel, rows = (base.directory / graph_name(base.shape, profile) for profile in ("kernel", "rows"))
    if not kernel.is_file() and not rows.is_file():
        raise GraphError(f"{base.directory}: no graph whose rows are independent; write one with: {_export(base)}")
    if kernel.is_file():
        try:
            library = row_lora()
        except BuildError as error:
            if not rows.is_file():
                raise GraphError(
                    f"{kernel}: its operator does not run here: {error}; write a graph that runs everywhere with: "
                    f"fedlora export {base.directory} --profile rows"
                ) from None
        else:
            manifest, session = open_graph(base, [kernel.name], threads=threads, operators=[library.library])
            return RowSession(
                manifest=manifest, session=session, adapters=NumberedAdapters(library), lays_out_adapters=True
            )
    manifest, session = open_graph(base, [rows.name], threads=threads)
    adapters = CopiedAdapters(base.shape.linear_modules(), scale_shapes(base.shape) if manifest.takes_scales else {})
    return RowSession(manifest=manifest, session=session, adapters=adapters, lays_out_adapters=False)


def _export(base: BasePack) -> str:
    """The command that writes a graph: beside the pack, but not into the installed package."""
    where_no_compiler = "(or --profile rows, where there is no C compiler)"
    if base.directory.resolve() == find_pack(EMBEDDED).resolve():
        return f"fedlora export {EMBEDDED} -o DIR --profile kernel {where_no_compiler}, and serve DIR"
    return f"fedlora export {base.directory} --profile kernel {where_no_compiler}"
