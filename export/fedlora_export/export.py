"""Write a pack's graphs beside its weights."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir
from fedlora.base.pack import MANIFEST, BasePack, open_pack, read_manifest
from fedlora.errors import ConfigError, GraphError
from fedlora.exported.graph_manifest import write_graph_manifest
from fedlora.exported.profiles import DEFAULT, ROW_PROFILES, SCALE_PROFILES, Profile, graph_inputs, graph_name
from fedlora.family import DecoderShape
from fedlora.files.atomic import whole_directory, whole_file
from fedlora.graph.build import build_graph as graph_of
from fedlora.graph.graph_check import read_checked_graph
from fedlora.graph.packed_layers import FLOAT_ACCURACY, INT8_ACCURACY
from fedlora.native import BuildError
from fedlora.row_lora.library import row_lora

from fedlora_export.checks.check import ROUNDED_TOLERANCE, check_graph
from fedlora_export.checks.torch_logits import Expected, torch_logits
from fedlora_export.genai import write_genai
from fedlora_export.onnx_model import onnx_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedGraph:
    """A graph that was written, and the largest differences of its logits from torch's, where torch is there."""

    path: Path
    profile: Profile
    exact: dict[str, float] | None  # computed in float32
    as_written: dict[str, float] | None  # at its own accuracy level

    def moved_to(self, folder: Path) -> ExportedGraph:
        return dataclasses.replace(self, path=folder / self.path.name)


def export_base(
    base: BasePack,
    output: str | Path | None = None,
    *,
    profiles: Sequence[Profile] = ("compat",),
    accuracy_level: int = INT8_ACCURACY,
    takes_scales: bool = False,
    replace: bool = False,
) -> list[ExportedGraph]:
    """Write a graph for each profile into the pack's folder, or the pack and its graphs into a new folder `output`.

    `takes_scales`: those of SCALE_PROFILES get inputs for what scales modules, which adapters of DoRA and IA3 need.

    Beside them lie their manifests and, for a decoder, what onnxruntime-genai needs. ONNX Runtime follows no link and no
    path out of the graph's folder: the graph and the weights must lie together. Raises GraphError, ConfigError.
    """
    if "kernel" in profiles:
        _check_operator()
    folder = base.directory if output is None else Path(output)
    if is_folder_of(base, folder):
        return write_graphs(base, profiles, accuracy_level, takes_scales=takes_scales)
    with whole_directory(folder, replace=MANIFEST if replace else None) as aside:
        for name in (MANIFEST, *read_manifest(base.directory)["files"]):
            shutil.copyfile(base.directory / name, aside / name)
        written = write_graphs(open_pack(aside), profiles, accuracy_level, takes_scales=takes_scales)
    return [graph.moved_to(folder) for graph in written]


def _check_operator() -> None:
    try:
        row_lora()
    except BuildError as error:
        raise ConfigError(
            f"the profile kernel runs an operator that is compiled where it runs, which is not to be had here: {error}; "
            "install a C compiler, or export --profile rows, which runs everywhere"
        ) from None


def is_folder_of(base: BasePack, folder: Path) -> bool:
    """Whether it is the pack's own, by whatever path or link."""
    return folder.exists() and folder.samefile(base.directory)


def write_graphs(
    base: BasePack, profiles: Sequence[Profile], accuracy_level: int, *, takes_scales: bool = False
) -> list[ExportedGraph]:
    """Write a graph for each profile beside the pack; what `export_base` writes into the pack's folder."""
    scaled = takes_scales and not SCALE_PROFILES.isdisjoint(profiles)
    expected = torch_logits(base, scaled=scaled)
    written = [
        _write_graph(base, profile, accuracy_level, expected, takes_scales=scaled and profile in SCALE_PROFILES)
        for profile in profiles
    ]
    alone = [profile for profile in profiles if profile not in ROW_PROFILES]
    if isinstance(base.model, DecoderShape) and alone:
        # Adapter files are made for this graph, whatever else was exported since.
        has_default = (base.directory / graph_name(base.model, DEFAULT)).is_file()
        write_genai(base, DEFAULT if has_default else alone[0])
    return written


def build_graph(base: BasePack, profile: Profile, accuracy_level: int, *, takes_scales: bool = False) -> ir.Model:
    """The graph of a profile, for whatever kind of model the pack is, to be written. Raises GraphError."""
    return onnx_model(graph_of(base, profile, accuracy_level, takes_scales=takes_scales), base.directory)


def _write_graph(
    base: BasePack, profile: Profile, accuracy_level: int, expected: Expected | None, *, takes_scales: bool
) -> ExportedGraph:
    """The graph is compared as it would be in float32, where a mistake is no rounding; then written as it is asked for."""
    graph = base.directory / graph_name(base.model, profile)
    in_float = build_graph(base, profile, FLOAT_ACCURACY, takes_scales=takes_scales)
    check = partial(check_graph, base=base, expected=expected, profile=profile, takes_scales=takes_scales)
    try:
        with whole_file(graph) as aside:
            ir.save(in_float, aside)
            exact = as_written = check(aside)
            if accuracy_level != FLOAT_ACCURACY:
                ir.save(build_graph(base, profile, accuracy_level, takes_scales=takes_scales), aside)
                as_written = check(aside, tolerance=ROUNDED_TOLERANCE)
            read_checked_graph(aside, base, profile, accuracy_level, takes_scales=takes_scales)
    except GraphError as error:
        raise GraphError(f"{graph.name} of {base.source} was not written: {error}; please report this") from None
    write_graph_manifest(
        graph, base_fingerprint=base.fingerprint, profile=profile, accuracy_level=accuracy_level,
        inputs=graph_inputs(base.model, profile, takes_scales=takes_scales),
    )  # fmt: skip
    return ExportedGraph(path=graph, profile=profile, exact=exact, as_written=as_written)
