"""Training on a device: LoRA on the packed base, and the Flower ClientApp that brings the work."""

from typing import TYPE_CHECKING

from fedlora.face import lazy_face
from fedlora.threads import wait_without_spinning

if TYPE_CHECKING:
    from fedlora_client.device import Device
    from fedlora_client.local_training import LocalRun, LocalTraining
    from fedlora_client.model import Model, open_model
    from fedlora_client.ops.compute import choose_compute
    from fedlora_client.training.measuring import evaluate
    from fedlora_client.training.trainer import TrainResult, Watcher, train

__all__ = [
    "Device", "LocalRun", "LocalTraining", "Model", "TrainResult", "Watcher", "choose_compute", "evaluate",
    "open_model", "train",
]  # fmt: skip

if not TYPE_CHECKING:  # to a type checker, any name would be there
    __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Device": "device",
            "LocalRun": "local_training",
            "LocalTraining": "local_training",
            "Model": "model",
            "TrainResult": "training.trainer",
            "Watcher": "training.trainer",
            "choose_compute": "ops.compute",
            "evaluate": "training.measuring",
            "open_model": "model",
            "train": "training.trainer",
        },
    )

wait_without_spinning()
