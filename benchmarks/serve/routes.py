"""What `bench_serve.py` compares: the processes, and the routes that are measured in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from export.artifacts import Artifacts
from serve.artifacts import PEER_SETS, RANKS, adapter_path, gguf_path, olive_path
from serve.engine import ROWS, Dtype, Kind, ServeJob

SLACK = 64  # tokens of a row for steps after the longest context


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One engine in a process."""

    kind: Kind
    artifacts: tuple[str, ...]  # that must have been made
    model: str  # its path within the artifacts' folder
    profile: str = ""
    rows: int = ROWS
    is_peers: bool = False

    def job(self, name: str, artifacts: Artifacts, threads: int, longest: int) -> ServeJob:
        return ServeJob(
            kind=self.kind,
            model=str(artifacts.folder / self.model),
            threads=threads,
            capacity=longest + SLACK,
            vocab_size=artifacts.pack.shape.vocab_size,
            rows=self.rows,
            profile=self.profile,
            adapters=self.adapter_sets(name, artifacts),
        )

    def adapter_sets(self, name: str, artifacts: Artifacts) -> dict[str, list[str]]:
        """{set: an adapter for each row} that there is for this engine."""
        folder, numbers = artifacts.folder, range(ROWS)
        if self.kind == "genai":
            ranks = {key: rank for key, rank in PEER_SETS.items() if name == f"olive-{rank}"}
            return {key: [str(olive_path(folder, rank, n)) for n in numbers] for key, rank in ranks.items()}
        if self.is_peers:
            sets = [key for key in PEER_SETS if f"llamacpp-{key}" in artifacts.made]
            return {key: [str(gguf_path(folder, key, n)) for n in numbers] for key in sets}
        return {key: [str(adapter_path(folder, key, n)) for n in numbers] for key in RANKS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to take all rows a step further, or to answer as many requests."""

    process: str
    case: str  # see `adapters_of`
    dtype: Dtype = "float32"


def _pack(profile: str, folder: str = "pack", rows: int = ROWS, kind: Kind = "plain") -> Process:
    return Process(kind=kind, artifacts=(profile,), model=folder, profile=profile, rows=rows)


PROCESSES: Mapping[str, Process] = MappingProxyType(
    {
        "base": _pack("base"),
        "kernel": _pack("kernel", kind="rows"),
        "rows": _pack("rows", "pack-rows", kind="rows"),
        "fast-1": _pack("fast", rows=1),
        "kernel-1": _pack("kernel", rows=1, kind="rows"),
        "compat-1": _pack("compat", rows=1),
        "generator": _pack("kernel", kind="generator"),
        "generator-1": _pack("kernel", rows=1, kind="generator"),
        "genai-tuned": Process(kind="genai", artifacts=("genai-tuned",), model="genai-tuned", is_peers=True),
        "olive-8": Process(kind="genai", artifacts=("olive-8",), model="olive-8", is_peers=True),
        "olive-16": Process(kind="genai", artifacts=("olive-16",), model="olive-16", is_peers=True),
        "llamacpp": Process(kind="llamacpp", artifacts=("llamacpp",), model="llamacpp.gguf", is_peers=True),
        "llamacpp-server": Process(
            kind="llamacpp-server", artifacts=("llamacpp",), model="llamacpp.gguf", is_peers=True
        ),
    }
)  # fmt: skip
REFERENCE = "compat-1"

# {what a route's name begins with: what it cannot do, in words}
CANNOT: Mapping[str, str] = MappingProxyType(
    {
        "fast-1": "its rows would share an adapter: one row, again and again",
        "kernel-1": "a batch of one row, again and again",
        "generator-1": "a batch of one row: one request after another",
        "genai-tuned": "sequences begin together, and none joins later; its Engine, where they do, takes no adapter",
        "olive": "an adapter is a generator's, not a sequence's: 16 adapters are 16 generators, one after another",
        "llamacpp ": "adapters are a context's, not a sequence's: 16 adapters are 16 sequences, one after another",
        "llamacpp-server": "one request at a time; each adapter is a model to it, loaded anew when it is asked",
    }
)

_OURS = ("none", "one r8", "16 r8", "one r16", "16 r16", "16 mixed")
_ANSWER_CASES = {
    "generator": ("none", "one r8", "16 r8", "16 r16"),
    "generator-1": ("16 r8",),
    "fast-1": ("16 r8",),
    "llamacpp-server": ("none", "16 r8"),
}


def _steps() -> dict[str, Route]:
    routes = {"base": Route(process="base", case="none")}
    routes |= {f"kernel {case}": Route(process="kernel", case=case) for case in _OURS}
    routes |= {
        f"kernel {case} f16": Route(process="kernel", case=case, dtype="float16")
        for case in ("16 r8", "16 r16", "16 mixed")
    }
    routes |= {f"rows {case}": Route(process="rows", case=case) for case in _OURS}
    for process in ("fast-1", "kernel-1"):
        routes |= {f"{process} {case}": Route(process=process, case=case) for case in ("none", "16 r8", "16 r16")}
    return routes | _peers(("r8", "r16"))


def _answers() -> dict[str, Route]:
    routes = {
        f"{process} {case}": Route(process=process, case=case)
        for process, cases in _ANSWER_CASES.items()
        for case in cases
    }
    return routes | _peers(("r8",))


def _peers(sets: tuple[str, ...]) -> dict[str, Route]:
    routes = {f"{process} none": Route(process=process, case="none") for process in ("genai-tuned", "llamacpp")}
    for key in sets:
        for process in (f"olive-{PEER_SETS[key]}", "llamacpp"):
            routes |= {
                f"{process} {count} {key}": Route(process=process, case=f"{count} {key}") for count in ("one", "16")
            }
    return routes


STEPS: Mapping[str, Route] = MappingProxyType(_steps())
ANSWERS: Mapping[str, Route] = MappingProxyType(_answers())


def runs(name: str, artifacts: Artifacts) -> bool:
    """Whether all that a process loads was made."""
    return all(artifact in artifacts.made for artifact in PROCESSES[name].artifacts)
