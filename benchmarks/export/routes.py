"""The routes of `bench_export.py`: what is loaded, and by which engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from export.artifacts import PEER_RANKS, PROFILES, RANKS, Artifacts
from export.engine import ExportJob, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to run the model."""

    artifact: str  # what must have been made
    model: str  # its path within the artifacts' folder
    kind: Kind = "onnxruntime"
    rank: int = 0
    adapter: str = ""
    shared_cache: bool = True

    @property
    def is_peers(self) -> bool:
        """Whether it runs in the peers' interpreter."""
        return self.kind != "onnxruntime"

    def job(self, artifacts: Artifacts, threads: int) -> ExportJob:
        return ExportJob(
            kind=self.kind,
            model=str(artifacts.folder / self.model),
            threads=threads,
            head_dim=artifacts.pack.shape.head_dim,
            rank=self.rank,
            adapter=str(artifacts.folder / self.adapter) if self.adapter else "",
            shared_cache=self.shared_cache,
        )


def _ours() -> dict[str, Route]:
    routes = {name: Route(artifact=name, model=graph) for name, (graph, _) in PROFILES.items()}
    for profile, ranks in (("compat", RANKS), ("fast", PEER_RANKS)):
        for rank in ranks:
            routes[f"{profile}-r{rank}"] = Route(artifact=profile, model=routes[profile].model, rank=rank)
    return routes


def _peers() -> dict[str, Route]:
    routes = {
        "genai-plain": Route(artifact="genai", model="genai/model.onnx"),
        "genai-loop": Route(artifact="genai", model="genai", kind="genai"),
        "genai-tuned-plain": Route(artifact="genai-tuned", model="genai-tuned/model.onnx"),
        "genai-tuned-loop": Route(artifact="genai-tuned", model="genai-tuned", kind="genai"),
        "llamacpp": Route(artifact="llamacpp", model="llamacpp.gguf", kind="llamacpp"),
        # Without GroupQueryAttention a cache cannot be written in place.
        "torch": Route(artifact="torch", model="torch/model.onnx", shared_cache=False),
    }
    for rank in PEER_RANKS:
        olive = f"olive-{rank}"
        routes[f"olive-plain-r{rank}"] = Route(artifact=olive, model=f"{olive}/model.onnx", rank=rank)
        routes[f"olive-loop-r{rank}"] = Route(
            artifact=olive, model=olive, kind="genai", rank=rank, adapter=f"{olive}/adapter_weights.onnx_adapter"
        )
        routes[f"llamacpp-r{rank}"] = Route(
            artifact=f"llamacpp-{rank}", model="llamacpp.gguf", kind="llamacpp", rank=rank,
            adapter=f"llamacpp-{rank}.gguf",
        )  # fmt: skip
    return routes


OURS: Mapping[str, Route] = MappingProxyType(_ours())
PEERS: Mapping[str, Route] = MappingProxyType(_peers())
