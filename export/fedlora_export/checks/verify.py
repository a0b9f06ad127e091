"""Verify a folder that somebody exported, before anything in it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedlora.base.pack import MANIFEST, BasePack, open_pack, read_manifest
from fedlora.errors import AdapterError, GraphError
from fedlora.exported.adapter_loading import load_adapter_file
from fedlora.exported.adapter_manifest import read_adapter_manifest
from fedlora.exported.graph_manifest import check_graph_file
from fedlora.exported.profiles import DEFAULT, graph_inputs

from fedlora_export.checks.folder_files import ADAPTER, GRAPH, check_folder_files
from fedlora_export.checks.graph_rules import check_graph_rules


def verify_folder(directory: Path, *, allow_unnamed_base: bool = False) -> Iterator[str]:
    """A sentence on the pack, each graph and each adapter of a folder, and on what else is there, once it was checked.

    Raises PackError, GraphError or AdapterError at the first thing that is wrong.
    """
    base = open_pack(directory)
    files = read_manifest(base.directory)["files"]
    yield f"{MANIFEST}: base {base.fingerprint}; {len(files)} files with the digests that it tells"
    graphs = sorted(base.directory.glob(f"*{GRAPH}"))
    if not graphs:
        raise GraphError(f"{directory}: no graph (*{GRAPH}); write one with: fedlora export {directory}")
    for graph in graphs:
        yield from verify_graph(graph, base)
    for adapter in sorted(base.directory.glob(f"*{ADAPTER}")):
        yield verify_adapter(adapter, base, allow_unnamed_base=allow_unnamed_base)
    count = check_folder_files(base, listed=files)
    yield f"{base.directory}: {count} files, all of them known"


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
        f"{facts.constants_bytes / 1e3:.0f} kB of constants; {facts.adapter_inputs} adapter inputs"
    )


def verify_adapter(path: Path, base: BasePack, *, allow_unnamed_base: bool = False) -> str:
    """A sentence on an adapter file. Raises AdapterError."""
    if path.is_symlink():
        raise AdapterError(f"{path}: a link; expected a file: copy the adapter into the folder")
    manifest = read_adapter_manifest(path)
    profile = manifest.profile if manifest else DEFAULT
    verified = load_adapter_file(
        path,
        base_fingerprint=base.fingerprint,
        inputs=graph_inputs(base.model, profile),
        profile=profile,
        allow_unnamed_base=allow_unnamed_base,
    )
    if verified.manifest is None:
        modules = len(verified.values) // 2
        return f"{path.name}: {modules} modules that fit, finite; no manifest, so its base is known by 31 bits at most"
    modules = len(verified.manifest.ranks)
    ranks = ", ".join(map(str, sorted(set(verified.manifest.ranks.values()))))
    told = "digest and base as its manifest tells"
    return f"{path.name}: profile {profile}, {modules} modules of rank {ranks}, finite; {told}"
