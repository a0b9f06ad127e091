"""The exporter: a base pack becomes an ONNX graph with adapter inputs."""

from typing import TYPE_CHECKING

from fedlora.face import lazy_face
from fedlora.telemetry import silence_telemetry

if TYPE_CHECKING:
    from fedlora_export.adapter_export import export_peft
    from fedlora_export.checks.verify import verify_folder
    from fedlora_export.export import export_base
    from fedlora_export.merge import export_merged

__all__ = ["export_base", "export_merged", "export_peft", "verify_folder"]

if not TYPE_CHECKING:  # to a type checker, any name would be there
    __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "export_base": "export",
            "export_merged": "merge",
            "export_peft": "adapter_export",
            "verify_folder": "checks.verify",
        },
    )

silence_telemetry()
