"""Verify a folder that somebody exported, before anything in it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from fedlora.base.pack import MANIFEST, BasePack, open_pack, read_manifest
from fedlora.counted import counted
from fedlora.errors import AdapterError, GraphError, PackError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.adapter_manifest import read_adapter_manifest
from fedlora.exported.cache_prefix import virtual_tokens
from fedlora.exported.graph_manifest import check_graph_file
from fedlora.exported.inputs import is_of_factors, is_of_head
from fedlora.exported.profiles import DEFAULT, file_inputs
from fedlora.files.tensor_file import TensorFile
from fedlora.graph.graph_check import read_checked_graph
from fedlora.lora.kinds import BY_NAME
from fedlora.lora.output_scale import is_scale
from safetensors import SafetensorError, safe_open

from fedlora_export.checks.folder_files import ADAPTER, GRAPH, check_folder_files


def verify_folder(directory: str | Path, *, allow_unnamed_base: bool = False) -> Iterator[str]:
    """A sentence on the pack, each graph and each adapter of a folder, and on what else is there, once it was checked.

    Raises PackError, GraphError or AdapterError at the first thing that is wrong.
    """
    base = open_pack(directory)
    check_second_reader(base.weights)
    files = read_manifest(base.directory)["files"]
    yield f"{MANIFEST}: base {base.fingerprint}; {counted(len(files), 'file')} with the digests that it tells"
    graphs = sorted(base.directory.glob(f"*{GRAPH}"))
    if not graphs:
        raise GraphError(f"{directory}: no graph (*{GRAPH}); write one with: fedlora export {directory}")
    for graph in graphs:
        yield from verify_graph(graph, base)
    for adapter in sorted(base.directory.glob(f"*{ADAPTER}")):
        yield verify_adapter(adapter, base, allow_unnamed_base=allow_unnamed_base)
    count = check_folder_files(base, listed=files)
    yield f"{base.directory}: {counted(count, 'file')}, all of them known"


def check_second_reader(weights: TensorFile) -> None:
    """Raise PackError unless the safetensors library finds the same tensors in the file as our own reader."""
    try:
        with safe_open(weights.path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            theirs = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise PackError(
            f"{weights.path}: the safetensors library does not read it: {error}; pack the base again"
        ) from None
    ours = {name: (entry.dtype, entry.shape) for name, entry in weights.entries.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise PackError(
                f"{weights.path}: {name} is {ours.get(name)} to fedlora and {theirs.get(name)} to the safetensors library; "
                "expected the same: pack the base again"
            )


def verify_graph(graph: Path, base: BasePack) -> Iterator[str]:
    """Sentences on a graph's manifest and on what it holds. Raises GraphError."""
    manifest = check_graph_file(graph, base)
    yield (
        f"{graph.name}: digest and base as its manifest tells; profile {manifest.profile}, "
        f"accuracy level {manifest.accuracy_level}"
    )
    checked = read_checked_graph(
        graph, base, manifest.profile, manifest.accuracy_level, takes_scales=manifest.takes_scales
    )
    facts = checked.facts
    yield (
        f"{graph.name}: {counted(facts.nodes, 'node')}, all known; {facts.external} weights are whole tensors of the pack; "
        f"{facts.constants_bytes / 1e3:.0f} kB of constants; {counted(facts.adapter_inputs, 'adapter input')}"
        f"{', output scales among them' if manifest.takes_scales else ''}"
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
        inputs=file_inputs(base.model, profile),
        profile=profile,
        allow_unnamed_base=allow_unnamed_base,
    )
    unnamed = "no manifest, so its base is known by 31 bits at most"
    told = unnamed if verified.manifest is None else "digest and base as its manifest tells"
    if virtual := virtual_tokens(verified.values):
        return f"{path.name}: keys and values of {counted(virtual, 'virtual token')} that fit, finite; {told}"
    if verified.manifest is None:
        modules = sum(map(is_of_factors, verified.values)) // 2
        return f"{path.name}: {counted(modules, 'module')}{_scaled(verified.values)} that fit, finite; {told}"
    modules, head = len(verified.manifest.ranks), [name for name in verified.values if is_of_head(name)]
    ranks = ", ".join(map(str, sorted(set(verified.manifest.ranks.values()))))
    beside = f" and a head of its own ({', '.join(head)})" if head else ""
    rank = f" of rank {ranks}" if ranks else " with factors"
    parts = f"{counted(modules, 'module')}{rank}{_scaled(verified.values, verified.manifest.method)}{beside}"
    return f"{path.name}: profile {profile}, {parts}, finite; {told}"


def _scaled(names: Iterable[str], method: str = "") -> str:
    """What is told of the modules, alone or in groups, that an adapter scales."""
    count = len({name.rpartition(".")[0] for name in names if is_scale(name)})
    kind = f" ({BY_NAME[method].title})" if method in BY_NAME else ""
    return f", {counted(count, 'module')} scaled{kind}" if count else ""
