"""The configuration of `fedlora serve`: what is served, where, with which memory, and to whom."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast, get_args

from fedlora.errors import ConfigError
from fedlora.row_lora.layout import LayoutDtype

from fedlora_serve.adapters.leases import check_adapter_name
from fedlora_serve.http.access.keys import ApiKey
from fedlora_serve.http.transport.allowed_origins import check_origin
from fedlora_serve.http.transport.host_check import is_loopback
from fedlora_serve.limits import Limits
from fedlora_serve.text.model_defaults import GENERATION_CONFIG_CHOICES

ADAPTER_DTYPES: tuple[LayoutDtype, ...] = get_args(LayoutDtype)
_UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One service. Fields that a file may set have the names that they have there; the rest of it: `config_file.py`."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    served_model_name: str = ""  # what requests call the base; empty: the name of its folder
    adapters: Mapping[str, str] = field(default_factory=dict)  # {name: path}, loaded at the start and kept
    chat_template: str = ""  # a file with the base's chat template; empty: the pack's
    chat_templates: Mapping[str, str] = field(
        default_factory=dict
    )  # {adapter's name: file}, in place of what it brings
    adapter_folder: str = ""  # what may be loaded over HTTP lies here; empty: nothing may
    releases: str = ""  # the folder that `fedlora update` writes; empty: none
    require_signed: tuple[str, ...] = ()  # [PATTERN=]KEY.pub: releases that these signed, and nothing else
    release_keys: tuple[str, ...] = ()  # the same for the names that fit, while others need no signature
    at_rest_key: str = ""  # file:PATH, env:VARIABLE or keyring:NAME: adapters that are encrypted are read with it
    rows: int = 16  # answers in one batch
    threads: int = 0  # 0: ONNX Runtime chooses
    cache_memory: str = "1GiB"  # of keys and values
    adapter_memory: str = "1GiB"
    adapter_dtype: str = "float32"  # of adapters in memory; float16 takes half, on the graph `kernel` alone
    queue: int = 256  # requests that wait; one more is answered 503
    prefill_tokens: int = 64  # of prompts, in one step beside sequences that decode
    generation_config: str = "auto"  # the model's own defaults of sampling; none: OpenAI's
    access_log: bool = False  # a line for every request
    allow_open: bool = False  # serve others than this machine without keys
    allow_origin: tuple[str, ...] = ()  # of pages that may call it from a browser; *: of all
    limits: Limits = field(default_factory=Limits)
    keys: tuple[ApiKey, ...] = ()
    admin: bytes | None = None  # sha256 of the admin key

    def __post_init__(self) -> None:
        # A Path is as good as a text.
        object.__setattr__(self, "adapters", {name: os.fspath(path) for name, path in self.adapters.items()})
        object.__setattr__(self, "adapter_folder", os.fspath(self.adapter_folder))
        if self.releases and not (self.require_signed or self.release_keys):
            raise ConfigError("releases must be signed; name their key with --require-signed or --release-key")
        for name, least, most in (
            ("port", 0, 65_535),
            ("rows", 1, 1024),
            ("threads", 0, 1024),
            ("queue", 1, 100_000),
            ("prefill_tokens", 1, 1 << 20),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must be from {least} to {most}, got {getattr(self, name)}")
        for name in (*self.adapters, *filter(None, [self.served_model_name])):
            check_adapter_name(name)
        if self.adapter_dtype not in ADAPTER_DTYPES:
            raise ConfigError(f"adapter_dtype must be {' or '.join(ADAPTER_DTYPES)}, got {self.adapter_dtype!r:.40}")
        if self.generation_config not in GENERATION_CONFIG_CHOICES:
            raise ConfigError(f"generation_config must be auto or none, got {self.generation_config!r:.40}")
        for origin in self.allow_origin:
            check_origin(origin)
        if min(self.cache_bytes, self.adapter_bytes) < 1:
            raise ConfigError("cache_memory and adapter_memory must be above 0")
        self._check_keys()
        if self.is_for_this_machine and not is_loopback(self.host):
            raise ConfigError(
                f"without keys, anybody who reaches {self.host} may use this service; set [[keys]] in a file for --config, "
                "serve on 127.0.0.1, or pass --allow-open where the network is trusted"
            )

    @property
    def is_for_this_machine(self) -> bool:
        """Whether it has no keys because nobody else gets at it."""
        return not self.keys and not self.allow_open

    @property
    def cache_bytes(self) -> int:
        return byte_size(self.cache_memory, "cache_memory")

    @property
    def adapter_bytes(self) -> int:
        return byte_size(self.adapter_memory, "adapter_memory")

    @property
    def layout(self) -> LayoutDtype:
        """How adapters are laid out for the graph `kernel`."""
        return cast(LayoutDtype, self.adapter_dtype)

    def _check_keys(self) -> None:
        names, digests = [key.name for key in self.keys], [key.digest for key in self.keys]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"keys: two have the name {twice[0]!r}; a name tells who has used up a rate")
        same = [key.name for key in self.keys if digests.count(key.digest) > 1 or key.digest == self.admin]
        if same:
            raise ConfigError(f"keys: {same[0]!r} is the same key as another one, or as the admin key; make a new one")


def byte_size(text: str | int, where: str) -> int:
    """Bytes. Raises ConfigError, naming `where` it stands."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,3}))? ?([A-Za-z]*)", str(text).strip(), re.ASCII)
    unit = _UNITS.get(match[3].upper()) if match else None
    if match is None or unit is None or type(text) is bool:
        raise ConfigError(f"{where}: expected a size such as 512MiB, 1.5GiB or a number of bytes, got {text!r:.40}")
    return int(float(f"{match[1]}.{match[2] or 0}") * unit)


def shown_size(size_bytes: float) -> str:
    """1.5 GiB of 1610612736."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024 or unit == "GiB":
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    raise AssertionError
