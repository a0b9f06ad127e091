"""ONNX Runtime without its telemetry: what is computed here stays here.

Its own wheel otherwise begins a session of telemetry as it is imported. The packages that import it call this first.
"""

from __future__ import annotations

import os


def silence_telemetry() -> None:
    """Switch it off, unless the environment says otherwise."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
