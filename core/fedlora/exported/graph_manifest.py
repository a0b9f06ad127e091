"""GRAPH.onnx.json: the digest of an exported graph, and what it is a graph of.

    graph            the file's name
    sha256           of the graph, and size_bytes
    base             the fingerprint of the pack whose weights it reads
    profile          how an adapter comes in (`fedlora.exported.profiles`)
    accuracy_level   of its products (MatMulNBits)
    slots            {adapter input: [rows, columns]}, -1 for the rank, or the number of labels; [rows] of a head's bias,
                     and of what scales modules, where the graph was exported with --output-scales

Whoever changes a graph can write this too: whether the graph is the base's own is for `fedlora.graph.graph_check` to see,
before it runs, and for the exporter before it writes this manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedlora.base.pack import BasePack, file_digest
from fedlora.errors import AdapterMismatchError, GraphError
from fedlora.exported.cache_prefix import is_of_cache
from fedlora.exported.profiles import DEFAULT, PROFILES, SCALE_PROFILES, Profile, graph_inputs, graph_name
from fedlora.exported.sidecar import InputShapes, read_sidecar, sidecar_of
from fedlora.files.atomic import write_text
from fedlora.lora.output_scale import has_scales

FORMAT, VERSION = "fedlora-graph", 1
_FIELDS = {"graph": str, "profile": str, "accuracy_level": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphManifest:
    """What stands beside a graph."""

    graph: str
    base: str  # its fingerprint
    sha256: str
    size_bytes: int
    profile: Profile
    accuracy_level: int
    inputs: InputShapes

    @property
    def takes_scales(self) -> bool:
        """Whether it has inputs for what scales modules; `kernel` takes that by number."""
        return has_scales(self.inputs)

    def check_takes(self, values: Iterable[str], adapter: str, folder: Path) -> None:
        """Raise AdapterMismatchError, which says how to write one that does, unless the graph of `folder` takes an adapter
        of these adapter inputs of single modules."""
        values = [name for name in values if not is_of_cache(name)]  # which every graph has as its cache
        if self.profile == "base":
            raise AdapterMismatchError(
                f"{adapter}: {self.graph} is of profile base, which takes no adapter; write a graph that does with: "
                f"fedlora export {folder} --profile {DEFAULT}"
            )
        if has_scales(values) and not self.takes_scales and self.profile in SCALE_PROFILES:
            raise AdapterMismatchError(
                f"{adapter}: it scales what modules give (DoRA, IA3), and {self.graph} has no inputs for that; write it "
                f"again with: fedlora export {folder} --profile {self.profile} --output-scales"
            )
        if self.profile == DEFAULT and not set(values) <= self.inputs.keys():
            raise AdapterMismatchError(
                f"{adapter}: it has a head of its own, and {self.graph} is of before graphs took one; write it again with: "
                f"fedlora export {folder}"
            )


def write_graph_manifest(
    graph: Path,
    *,
    base_fingerprint: str,
    profile: Profile,
    accuracy_level: int,
    inputs: InputShapes,
    file: Path | None = None,
) -> Path:
    """Write the manifest of `graph` beside it, and return its path; `file` is where the graph lies meanwhile."""
    file = file or graph
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "graph": graph.name,
        "base": base_fingerprint,
        "sha256": file_digest(file),
        "size_bytes": file.stat().st_size,
        "profile": profile,
        "accuracy_level": accuracy_level,
        "slots": {name: list(shape) for name, shape in inputs.items()},
    }
    path = sidecar_of(graph)
    write_text(path, json.dumps(manifest, indent=2) + "\n")
    return path


def read_graph_manifest(graph: Path) -> GraphManifest:
    """Raises GraphError where there is none, or it is not sound."""
    path = sidecar_of(graph)
    if not path.is_file():
        raise GraphError(f"{path}: no such file; write the graph and its manifest with: fedlora export {graph.parent}")
    values = read_sidecar(path, kind=FORMAT, version=VERSION, fields=_FIELDS, error=GraphError)
    if values["graph"] != graph.name:
        raise GraphError(f"{path}: of a graph {values['graph']!r:.80}, beside {graph.name}; export the graph again")
    if values["profile"] not in PROFILES:
        raise GraphError(f"{path}: profile {values['profile']!r:.80}; expected {', '.join(PROFILES)}: export it again")
    return GraphManifest(
        graph=values["graph"],
        base=values["base"],
        sha256=values["sha256"],
        size_bytes=values["size_bytes"],
        profile=values["profile"],
        accuracy_level=values["accuracy_level"],
        inputs=values["slots"],
    )


def check_graph_file(graph: Path, base: BasePack) -> GraphManifest:
    """Raise GraphError unless the graph is the one that its manifest tells, for this base; return the manifest."""
    if not graph.is_file():
        raise GraphError(f"{graph}: no such file; write it with: fedlora export {graph.parent}")
    manifest = read_graph_manifest(graph)
    if manifest.base != base.fingerprint:
        raise GraphError(f"{graph}: made for base {manifest.base}, the pack is {base.fingerprint}; export it again")
    expected = graph_name(base.model, manifest.profile)
    if graph.name != expected:
        raise GraphError(f"{graph}: of profile {manifest.profile}, which is written as {expected}; export it again")
    size = graph.stat().st_size
    if size != manifest.size_bytes:
        raise GraphError(f"{graph}: {size} bytes, its manifest says {manifest.size_bytes}; export it again")
    digest = file_digest(graph)
    if digest != manifest.sha256:
        raise GraphError(f"{graph}: sha256 is {digest}, its manifest says {manifest.sha256}; export it again")
    inputs = graph_inputs(base.model, manifest.profile, takes_scales=manifest.takes_scales)
    earlier = graph_inputs(base.model, manifest.profile, takes_head=False)
    if manifest.inputs not in (inputs, earlier):
        wrong = sorted({name for name, _ in manifest.inputs.items() ^ inputs.items()})[0]
        raise GraphError(
            f"{sidecar_of(graph)}: adapter input {wrong!r:.120} is {manifest.inputs.get(wrong, 'missing')}, the base's is "
            f"{inputs.get(wrong, 'missing')}; export it again"
        )
    return manifest
