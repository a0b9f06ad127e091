"""What does a graph lose by taking the activations of its products as int8?

    python benchmarks/bench_accuracy.py        # about a minute

fedlora-nano on the held-out text of its own corpus (tools/nano), nats per token, by the exported graph at both accuracies.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import open_pack
from fedlora.exported.profiles import graph_name
from fedlora.graph.packed_layers import FLOAT_ACCURACY, INT8_ACCURACY
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_export.checks.check import open_session
from fedlora_export.export import export_base
from numpy.typing import NDArray

from harness.record import record

PROJECT = Path(__file__).resolve().parents[1]
_ROWS = 8  # windows that are read at a time
_WINDOWS = 200


def main() -> None:
    sys.path.append(str(PROJECT / "tools" / "nano"))
    from corpus import WINDOW, documents, tokens_of

    base = open_pack("nano")
    held_out = tokens_of(documents()[1], open_tokenizer(base.directory))
    windows = held_out[: len(held_out) // WINDOW * WINDOW].reshape(-1, WINDOW)[:_WINDOWS]
    figures = {"tokens": float(windows[:, 1:].size)}
    for name, level in (("float32", FLOAT_ACCURACY), ("int8", INT8_ACCURACY)):
        with tempfile.TemporaryDirectory() as folder:
            export_base(base, Path(folder) / "model", profiles=("base",), accuracy_level=level)
            session = open_session(Path(folder) / "model" / graph_name(base.model, "base"))
            figures[name] = _loss(session, windows)
    record("accuracy", {"base": base.fingerprint}, {key: round(value, 4) for key, value in figures.items()})


def _loss(session: ort.InferenceSession, windows: NDArray[np.int64]) -> float:
    """Nats per token of windows [N, T], each token but the first."""
    total = 0.0
    for part in np.split(windows, range(_ROWS, len(windows), _ROWS)):
        inputs = {given.name: given.shape for given in session.get_inputs()}
        past = {
            name: np.zeros((len(part), shape[1], 0, shape[3]), np.float32)
            for name, shape in inputs.items()
            if name.startswith("past_key_values.")
        }
        feeds = {"input_ids": part, "attention_mask": np.ones_like(part), **past}
        (scores,) = session.run(["logits"], feeds)
        shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        total -= float(np.take_along_axis(log_p[:, :-1], part[:, 1:, None], -1).sum())
    return total / windows[:, 1:].size


if __name__ == "__main__":
    main()
