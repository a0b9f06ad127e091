"""Serving: one base on ONNX Runtime, adapters swapped per request."""

from typing import TYPE_CHECKING

from fedlora.face import lazy_face
from fedlora.telemetry import silence_telemetry

if TYPE_CHECKING:
    from fedlora_serve.adapters.loading import LoadedAdapter
    from fedlora_serve.adapters.store import AdapterStore
    from fedlora_serve.batching.engine import BatchEngine
    from fedlora_serve.batching.request import Request
    from fedlora_serve.embedding import Embedder
    from fedlora_serve.http.service.config import ServeConfig
    from fedlora_serve.http.service.open_service import open_service
    from fedlora_serve.local.engine import Engine
    from fedlora_serve.local.generate import generate
    from fedlora_serve.text.sampling import Sampling

__all__ = [
    "AdapterStore", "BatchEngine", "Embedder", "Engine", "LoadedAdapter", "Request", "Sampling", "ServeConfig",
    "generate", "open_service",
]  # fmt: skip

if not TYPE_CHECKING:  # to a type checker, any name would be there
    __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "AdapterStore": "adapters.store",
            "BatchEngine": "batching.engine",
            "Embedder": "embedding",
            "Engine": "local.engine",
            "LoadedAdapter": "adapters.loading",
            "Request": "batching.request",
            "Sampling": "text.sampling",
            "ServeConfig": "http.service.config",
            "generate": "local.generate",
            "open_service": "http.service.open_service",
        },
    )

silence_telemetry()
