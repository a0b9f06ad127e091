"""What travels between server and device: one adapter with its circumstances, as one block of bytes.

    b"FLUP" | version uint8 | N uint32 little endian | N bytes of JSON header | payload in the header's codec

One block because Flower moves each Array by itself: 392 small ones took ten times as long as one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.adapter import Adapter, LoraPair
from fedlora.codec import CODECS
from fedlora.errors import AdapterError, ConfigError, UpdateError
from fedlora.lora import LoraConfig

_MAGIC, _VERSION = b"FLUP", 1
_PREAMBLE_BYTES = 9
_MAX_HEADER_BYTES = 1 << 20
_MAX_MODULES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An adapter on its way: down to a device (num_examples 0) or up from one."""

    adapter: Adapter
    run: str
    server_round: int
    base_fingerprint: str
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def encode_update(update: Update, codec: str = "f32") -> bytes:
    """The update as bytes. Raises UpdateError where `codec` cannot hold a value."""
    config = config_values(update.adapter.config)
    header = {
        "run": update.run,
        "round": update.server_round,
        "base": update.base_fingerprint,
        "num_examples": update.num_examples,
        "metrics": dict(update.metrics),
        "lora": config,
        "codec": codec,
        "modules": [[module, *pair.shape] for module, pair in update.adapter.pairs.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    arrays = [array for pair in update.adapter.pairs.values() for array in (pair.lora_A, pair.lora_B)]
    return b"".join((_MAGIC, bytes([_VERSION]), len(text).to_bytes(4, "little"), text, CODECS[codec].encode(arrays)))


def decode_update(data: bytes | memoryview) -> Update:
    """Read bytes from a stranger. Raises UpdateError, with a reason to count by, unless they are a sound update.

    Sound means well formed; whether the update belongs to a run is for the one who knows the run to say.
    """
    view = memoryview(data)
    header, payload = _split(view)
    try:
        codec = CODECS[header["codec"]]
        config = header["lora"]
        targets = config["target_modules"]
        lora = LoraConfig(**{**config, "target_modules": tuple(targets) if isinstance(targets, list) else targets})
        modules = [(str(name), int(rows), int(columns)) for name, rows, columns in header["modules"]]
        if len(modules) > _MAX_MODULES or len({name for name, _, _ in modules}) != len(modules):
            raise ValueError(f"{len(modules)} modules, at most {_MAX_MODULES} are read, each once")
        if any(not 1 <= size < 1 << 32 for _, rows, columns in modules for size in (rows, columns)):
            raise ValueError("a module's shape is out of range")
        shapes: list[tuple[int, ...]] = []
        for name, rows, columns in modules:
            shapes += [(lora.rank_of(name), columns), (rows, lora.rank_of(name))]
        metrics = {str(name): float(value) for name, value in header["metrics"].items()}
        circumstances = (header["run"], header["round"], header["base"], header["num_examples"])
        if [type(value) for value in circumstances] != [str, int, str, int]:
            raise ValueError("run and base must be strings, round and num_examples integers")
    except (KeyError, ValueError, TypeError, AttributeError, ConfigError, OverflowError) as error:
        raise UpdateError("bad-header", f"not the header of an update: {type(error).__name__}: {error}") from None
    arrays = codec.decode(payload, shapes)
    try:
        pairs = {name: LoraPair(arrays[2 * i], arrays[2 * i + 1]) for i, (name, _, _) in enumerate(modules)}
        adapter = Adapter(lora, pairs)
    except AdapterError as error:
        raise UpdateError("bad-shape", str(error)) from None
    run, server_round, base, num_examples = circumstances
    return Update(
        adapter=adapter,
        run=run,
        server_round=server_round,
        base_fingerprint=base,
        num_examples=num_examples,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def config_values(config: LoraConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    plain = {name: getattr(config, name) for name in LoraConfig.__dataclass_fields__}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def _split(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(view) < _PREAMBLE_BYTES or view[:4] != _MAGIC:
        raise UpdateError("bad-header", f"{len(view)} bytes that do not begin with {_MAGIC!r}: not an update")
    if view[4] != _VERSION:
        raise UpdateError("bad-header", f"version {view[4]} of the update format; expected {_VERSION}")
    length = int.from_bytes(view[5:_PREAMBLE_BYTES], "little")
    end = _PREAMBLE_BYTES + length
    if length > _MAX_HEADER_BYTES or end > len(view):
        raise UpdateError("bad-header", f"header of {length} bytes in an update of {len(view)}; is it truncated?")
    try:
        header = json.loads(bytes(view[_PREAMBLE_BYTES:end]))
    except (ValueError, RecursionError) as error:
        raise UpdateError("bad-header", f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise UpdateError("bad-header", f"the header must be a JSON object, got {type(header).__name__}")
    return header, view[end:]
