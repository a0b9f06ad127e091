"""fedlora's shared core: base packs, adapters and their algebra, updates, run configurations."""

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
