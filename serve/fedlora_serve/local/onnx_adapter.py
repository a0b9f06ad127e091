"""A verified adapter file as inputs of an ONNX Runtime session.

The runtime's own loader accepts a NaN or a flipped bit, and maps the file: one that is truncated later would end the
process. Here the file is read whole, checked (`fedlora.exported.adapter_loading`) and handed on as plain inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.exported.adapter_loading import load_adapter_file
from fedlora.exported.adapter_manifest import AdapterManifest
from fedlora.exported.profiles import DEFAULT, Profile, graph_inputs
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """A verified adapter, ready to feed. It owns the memory that its OrtValues point to."""

    path: Path
    values: Mapping[str, NDArray[np.float32]]
    inputs: Mapping[str, ort.OrtValue]
    manifest: AdapterManifest | None = None  # None: the file had none


def load_onnx_adapter(
    path: Path, base: BasePack, *, profile: Profile = DEFAULT, allow_unnamed_base: bool = False
) -> LoadedAdapter:
    """Read and verify a .onnx_adapter file for the graph of `base` and `profile`. Raises AdapterError."""
    verified = load_adapter_file(
        path,
        base_fingerprint=base.fingerprint,
        inputs=graph_inputs(base.model, profile),
        profile=profile,
        allow_unnamed_base=allow_unnamed_base,
    )
    inputs = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in verified.values.items()}
    return LoadedAdapter(path=path, values=verified.values, inputs=inputs, manifest=verified.manifest)
