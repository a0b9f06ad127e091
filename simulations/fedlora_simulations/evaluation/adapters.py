"""The adapter that is evaluated: a PEFT directory, a .onnx_adapter file, an id on the hub, or a round of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig
from fedlora.errors import AdapterError, ConfigError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.cache_prefix import prefix_adapter, stacked, virtual_tokens
from fedlora.exported.inputs import adapter_of_inputs
from fedlora.exported.profiles import DEFAULT, file_inputs
from fedlora.lora.adapter import Adapter
from fedlora.lora.output_scale import has_scales
from fedlora.peft.finding import find_adapter
from fedlora.peft.for_base import whole_adapter_of
from fedlora_server.run.run_directory import CONFIG, ROUNDS, adapter_of_round, last_round, read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlace:
    """Where it lies; of a run, which round's it is, and the run's configuration."""

    path: Path
    server_round: int = 0
    config: RunConfig | None = None


def adapter_place(source: str, server_round: int) -> AdapterPlace:
    """That of `source`; `server_round` 0 is the last that a run committed. Raises ConfigError, AdapterError."""
    run = Path(source)
    if not (run / CONFIG).is_file() or not (run / ROUNDS).is_dir():
        if server_round:
            raise ConfigError(
                f"--round {server_round}: {source} is no run; leave it out, or name the directory of a run"
            )
        return AdapterPlace(path=find_adapter(source))
    config, wanted = read_config(run), server_round or last_round(run)
    return AdapterPlace(path=adapter_of_round(run, wanted), server_round=wanted, config=config)


def read_adapter(path: Path, base: BasePack) -> Adapter:
    """For torch: the adapter, verified for the base. Raises AdapterError."""
    if path.is_dir():
        return whole_adapter_of(path, base)
    file = load_adapter_file(path, base_fingerprint=base.fingerprint, inputs=file_inputs(base.model, DEFAULT))
    if virtual_tokens(file.values):
        return prefix_adapter(stacked(file.values, base.shape, str(path)))
    if has_scales(file.values):
        raise AdapterError(
            f"{path}: it scales what modules give (DoRA, IA3), which torch takes as it trained; name the adapter's PEFT "
            "directory, or compute in a graph with --graph DIR"
        )
    return adapter_of_inputs(file.values)
