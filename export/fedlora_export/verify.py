"""Verify a folder that somebody exported, before anything in it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedlora.adapter_loading import load_adapter_file
from fedlora.errors import AdapterError, GraphError
from fedlora.graph_manifest import check_graph_file
from fedlora.pack import MANIFEST, BasePack, open_pack, read_manifest
from fedlora.slots import slot_shapes

from fedlora_export.graph_rules import check_graph_rules

GRAPHS, ADAPTERS = "*.onnx", "*.onnx_adapter"


def verify_folder(directory: Path, *, allow_unnamed_base: bool = False) -> Iterator[str]:
    """A sentence on the pack, each graph and each adapter of a folder, once it was checked.

    Raises PackError, GraphError or AdapterError at the first thing that is wrong.
    """
    base = open_pack(directory)
    files = read_manifest(base.directory)["files"]
    yield f"{MANIFEST}: base {base.fingerprint}; {len(files)} files with the digests that it tells"
    graphs = sorted(base.directory.glob(GRAPHS))
    if not graphs:
        raise GraphError(f"{directory}: no graph ({GRAPHS}); write one with: fedlora export {directory}")
    for graph in graphs:
        yield from verify_graph(graph, base)
    for adapter in sorted(base.directory.glob(ADAPTERS)):
        yield verify_adapter(adapter, base, allow_unnamed_base=allow_unnamed_base)
    _check_orphans(base.directory)


def verify_graph(graph: Path, base: BasePack) -> Iterator[str]:
    """Sentences on a graph's manifest and on what it holds. Raises GraphError."""
    manifest = check_graph_file(graph, base)
    yield (
        f"{graph.name}: digest and base as its manifest tells; profile {manifest.profile}, "
        f"accuracy level {manifest.accuracy_level}"
    )
    facts = check_graph_rules(graph, base, manifest.profile)
    yield (
        f"{graph.name}: {facts.nodes} nodes, all known; {facts.external} weights are whole tensors of the pack; "
        f"{facts.constants_bytes / 1e3:.0f} kB of constants; {facts.slots} adapter inputs"
    )


def verify_adapter(path: Path, base: BasePack, *, allow_unnamed_base: bool = False) -> str:
    """A sentence on an adapter file. Raises AdapterError."""
    if path.is_symlink():
        raise AdapterError(f"{path}: a link; expected a file: copy the adapter into the folder")
    verified = load_adapter_file(
        path,
        base_fingerprint=base.fingerprint,
        slots=slot_shapes(base.model.linear_modules()),
        allow_unnamed_base=allow_unnamed_base,
    )
    modules = len(verified.values) // 2
    if verified.manifest is None:
        return f"{path.name}: {modules} modules that fit, finite; no manifest, so its base is known by 31 bits at most"
    ranks = ", ".join(map(str, sorted(set(verified.manifest.ranks.values()))))
    return f"{path.name}: {modules} modules of rank {ranks}, finite; digest and base as its manifest tells"


def _check_orphans(directory: Path) -> None:
    for path in sorted(directory.glob("*.json")):
        owner = path.with_suffix("")
        if owner.suffix in (".onnx", ".onnx_adapter") and not owner.is_file():
            kind = GraphError if owner.suffix == ".onnx" else AdapterError
            raise kind(f"{path}: the manifest of {owner.name}, which is not there; copy both, or remove it")
