"""fedlora's shared core: base packs, adapters and their algebra, updates, run configurations."""

from typing import TYPE_CHECKING

from fedlora.face import lazy_face

if TYPE_CHECKING:
    from fedlora.base.pack import BasePack, open_pack
    from fedlora.base.packing import make_pack
    from fedlora.config.run import RunConfig, read_scenario
    from fedlora.errors import FedloraError
    from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
    from fedlora.lora.config import LoraConfig
    from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
    from fedlora.version import __version__
    from fedlora.wire.update import Update, decode_update, encode_update

__all__ = [
    "Adapter", "BasePack", "FedloraError", "LoraConfig", "LoraPair", "PeftDirectory", "RunConfig", "Update",
    "__version__", "decode_update", "encode_update", "initial_adapter", "make_pack", "open_pack", "read_peft",
    "read_scenario", "write_peft",
]  # fmt: skip

if not TYPE_CHECKING:  # to a type checker, any name would be there
    __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Adapter": "lora.adapter",
            "BasePack": "base.pack",
            "FedloraError": "errors",
            "LoraConfig": "lora.config",
            "LoraPair": "lora.adapter",
            "PeftDirectory": "peft.directory",
            "RunConfig": "config.run",
            "Update": "wire.update",
            "__version__": "version",
            "decode_update": "wire.update",
            "encode_update": "wire.update",
            "initial_adapter": "lora.adapter",
            "make_pack": "base.packing",
            "open_pack": "base.pack",
            "read_peft": "peft.directory",
            "read_scenario": "config.run",
            "write_peft": "peft.directory",
        },
    )
