"""fedlora's shared core: base packs, adapters and their algebra, updates, run configurations."""

from fedlora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.errors import FedloraError
from fedlora.lora import LoraConfig
from fedlora.pack import BasePack, open_pack
from fedlora.peft import PeftDirectory, read_peft, write_peft
from fedlora.run_config import RunConfig, read_scenario
from fedlora.update import Update, decode_update, encode_update
from fedlora.version import __version__

__all__ = [
    "Adapter", "BasePack", "FedloraError", "LoraConfig", "LoraPair", "PeftDirectory", "RunConfig", "Update", "__version__",
    "decode_update", "encode_update", "initial_adapter", "open_pack", "read_peft", "read_scenario", "write_peft",
]  # fmt: skip
