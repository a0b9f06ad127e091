"""A session of ONNX Runtime on an exported graph of a base pack."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.exported.graph_manifest import GraphManifest, check_graph_file
from fedlora.graph.graph_check import read_checked_graph
from fedlora.threads import may_spin

_WORD_S = 60.0  # a word on a session that is not there yet
_log = logging.getLogger(__name__)
_FOLDER = "session.model_external_initializers_file_folder_path"
# Of a thread that waits for the others: as fast as spinning on an idle machine, and as sleeping beside other work.
_SPIN_US = "20"


def open_graph(
    base: BasePack, names: Sequence[str], *, threads: int = 0, operators: Sequence[Path] = ()
) -> tuple[GraphManifest, ort.InferenceSession]:
    """The first of the graphs of these names that lies beside `base`, in a session on the CPU: it is the base's own graph,
    or nothing of it runs.

    `threads` 0 leaves their number to ONNX Runtime; they spin a moment, then sleep (`fedlora.threads`). `operators` are
    libraries of operators of its own. Raises GraphError.
    """
    graphs = [base.directory / name for name in names]
    graph = next((graph for graph in graphs if graph.is_file()), graphs[0])
    manifest = check_graph_file(graph, base)
    checked = read_checked_graph(
        graph, base, manifest.profile, manifest.accuracy_level, takes_scales=manifest.takes_scales
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
    options.intra_op_num_threads = threads
    options.add_session_config_entry(_FOLDER, str(base.directory.resolve()))
    if not may_spin():
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    try:
        with _told_while_loading(graph):
            return manifest, _session(checked.content, options, operators)
    except Exception as error:  # the runtime raises its own kinds, which share no base
        raise GraphError(f"{graph}: ONNX Runtime does not load it: {error}; export it again") from None


def _session(content: bytes, options: ort.SessionOptions, operators: Sequence[Path]) -> ort.InferenceSession:
    for library in operators:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextmanager
def _told_while_loading(graph: Path) -> Iterator[None]:
    """Say so each minute for as long as it takes."""
    loaded, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not loaded.wait(_WORD_S):
            _log.warning("%s: ONNX Runtime has been loading it for %.0f s", graph, time.monotonic() - began)

    threading.Thread(target=tell, name="loading", daemon=True).start()
    try:
        yield
    finally:
        loaded.set()
