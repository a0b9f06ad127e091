"""An adapter as a file of ONNX Runtime's adapter format."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
from fedlora.adapter import Adapter
from fedlora.atomic import whole_file
from fedlora.slots import model_version, slot_values

_ADAPTER_VERSION = 1


def write_onnx_adapter(adapter: Adapter, base_fingerprint: str, path: Path) -> None:
    """Write `adapter` as inputs of the base's graph; the base is named by the format's model version."""
    values = slot_values(adapter)  # kept until the file is written: an OrtValue does not own its memory
    content = ort.AdapterFormat()
    content.set_adapter_version(_ADAPTER_VERSION)
    content.set_model_version(model_version(base_fingerprint))
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    with whole_file(path) as aside:
        content.export_adapter(str(aside))
