"""What travels between server and device: an adapter with its circumstances, as one block of bytes.

    b"FLUP" | version uint8 | N uint32 little endian | N bytes of JSON header | payload in the header's codec

One block because Flower moves each Array by itself: 392 small ones took ten times as long as one. A factor that both
ends have does not travel; extra tensors always do, behind all factors. The header ends with spaces: its payload begins at a
multiple of 64 bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import AdapterError, ConfigError, UpdateError
from fedlora.files.json_text import parse_json
from fedlora.lora.adapter import MAX_EXTRAS, Adapter, LoraPair, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.wire.codec import CODECS, Codec
from fedlora.wire.task import FACTOR_SETS, FactorSet, Task

_MAGIC, _VERSION = b"FLUP", 2
_PREAMBLE_BYTES, _ALIGNMENT = 9, 64
_MAX_HEADER_BYTES = 1 << 20
MAX_BEGIN_BYTES = _PREAMBLE_BYTES + _MAX_HEADER_BYTES
_MAX_MODULES = 2048
MAX_ROUND = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An adapter on its way: down to a device (num_examples 0) or up from one."""

    adapter: Adapter
    run: str
    server_round: int
    base_fingerprint: str
    factors: FactorSet = "AB"  # of the adapter that travel; the receiver has the other one
    frozen: Adapter | None = None  # down only: what stands frozen beside the adapter
    task: Task = field(default_factory=Task)  # down only
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    bound: float = math.nan  # of the magnitudes that travelled; NaN where a number is none, or nothing travelled yet


def encode_update(update: Update, codec: str = "f32") -> bytes:
    """The update as bytes. Raises UpdateError where `codec` cannot hold a value."""
    header = {
        "run": update.run,
        "round": update.server_round,
        "base": update.base_fingerprint,
        "num_examples": update.num_examples,
        "metrics": dict(update.metrics),
        "codec": codec,
        "factors": update.factors,
        "task": update.task.values(),
        **_described(update.adapter),
        "side": None if update.frozen is None else _described(update.frozen),
    }
    extras = update.adapter.extras
    if extras:  # a device of an earlier version, which knows none, reads all other updates
        header["extras"] = [[name, *array.shape] for name, array in extras.items()]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_PREAMBLE_BYTES + len(text)) % _ALIGNMENT)
    arrays = [
        array
        for adapter, factors in ((update.adapter, update.factors), (update.frozen, "AB"))
        if adapter is not None
        for pair in adapter.pairs.values()
        for factor, array in zip("AB", (pair.lora_A, pair.lora_B), strict=True)
        if factor in factors
    ] + list(extras.values())
    return b"".join((_MAGIC, bytes([_VERSION]), len(text).to_bytes(4, "little"), text, CODECS[codec].encode(arrays)))


def decode_update(data: bytes | memoryview, known: Callable[[], Adapter] | None = None) -> Update:
    """Read bytes from a stranger. Raises UpdateError, with a reason to count by, unless they are a sound update.

    A factor that did not travel is that of the first components of `known`. Sound means well formed; whether the update
    belongs to a run is for the one who knows the run to say.
    """
    header, payload = _split(memoryview(data))
    told = _Told.read(header)
    arrays = iter(told.codec.decode(payload, told.shapes()))
    try:
        adapter = told.plan.adapter(arrays, known)
        frozen = told.frozen.adapter(arrays, None) if told.frozen else None
        adapter = with_extras(adapter, dict(zip(told.extras, arrays, strict=True)))
    except AdapterError as error:
        raise UpdateError("bad-shape", str(error)) from None
    run, server_round, base, num_examples = told.circumstances
    return Update(
        adapter=adapter,
        run=run,
        server_round=server_round,
        base_fingerprint=base,
        factors=told.plan.factors,
        frozen=frozen,
        task=told.task,
        num_examples=num_examples,
        metrics={name: value for name, value in told.metrics.items() if math.isfinite(value)},
        bound=told.codec.bound(payload),
    )


def check_length(begin: bytes, size_bytes: int) -> None:
    """Raise UpdateError unless an update that begins so has as many bytes: asked before all of a file is read.

    `begin` are its first `MAX_BEGIN_BYTES`, or all that there are.
    """
    header, rest = _split(memoryview(begin))
    told = _Told.read(header)
    due = len(begin) - len(rest) + told.codec.size_bytes(told.shapes())
    if size_bytes != due:
        raise UpdateError("truncated", f"{size_bytes} bytes; its header tells of {due}")


def payload(data: bytes | memoryview) -> memoryview:
    """The numbers of an update, as they travelled. Raises UpdateError where there is no header before them."""
    return _split(memoryview(data))[1]


@dataclass(frozen=True, slots=True)
class _Plan:
    """An adapter as a header describes it."""

    lora: LoraConfig
    modules: list[tuple[str, int, int]]  # name, O, I
    factors: FactorSet

    @classmethod
    def read(cls, header: Mapping[str, Any], factors: FactorSet) -> _Plan:
        config = header["lora"]
        lists = {key: tuple(config[key]) for key in ("target_modules", "layers") if isinstance(config.get(key), list)}
        lora = LoraConfig(**{**config, **lists})
        modules = [(name, rows, columns) for name, rows, columns in header["modules"]]
        for name, *shape in modules:
            if type(name) is not str or any(type(size) is not int for size in shape):
                raise ValueError(f"a module must be its name and two integers, got {[name, *shape]!r:.80}")
        if len(modules) > _MAX_MODULES or len({name for name, _, _ in modules}) != len(modules):
            raise ValueError(f"{len(modules)} modules, at most {_MAX_MODULES} are read, each once")
        if any(not 1 <= size < 1 << 32 for _, rows, columns in modules for size in (rows, columns)):
            raise ValueError("a module's shape is out of range")
        return cls(lora, modules, factors)

    def shapes(self) -> Iterator[tuple[int, ...]]:
        for name, rows, columns in self.modules:
            if "A" in self.factors:
                yield self.lora.rank_of(name), columns
            if "B" in self.factors:
                yield rows, self.lora.rank_of(name)

    def adapter(self, arrays: Iterator[Any], known: Callable[[], Adapter] | None) -> Adapter:
        """Raises AdapterError where the factors do not fit, UpdateError where one is missing."""
        if self.factors == "AB":
            return Adapter(self.lora, {name: LoraPair(next(arrays), next(arrays)) for name, _, _ in self.modules})
        if known is None:
            raise UpdateError("wrong-factors", f"only {self.factors} came; expected A and B")
        mine, pairs = known(), {}
        for name, rows, columns in self.modules:
            rank = self.lora.rank_of(name)
            if name not in mine.pairs or mine.pairs[name].shape != (rows, columns) or mine.pairs[name].rank < rank:
                raise UpdateError(
                    "bad-shape", f"{name} [{rows}, {columns}] of rank {rank} came; it is not what we hold"
                )
            held = mine.pairs[name]
            came = next(arrays)
            pair = (came, held.lora_B[:, :rank]) if self.factors == "A" else (held.lora_A[:rank], came)
            pairs[name] = LoraPair(*pair)
        return Adapter(self.lora, pairs)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a header says."""

    codec: Codec
    plan: _Plan
    frozen: _Plan | None
    extras: dict[str, tuple[int, ...]]
    task: Task
    metrics: dict[str, float]
    circumstances: tuple[str, int, str, int]  # run, round, base, num_examples

    @classmethod
    def read(cls, header: Mapping[str, Any]) -> _Told:
        """Raises UpdateError where it is not the header of an update."""
        try:
            factors: FactorSet = header["factors"]
            if factors not in FACTOR_SETS:
                raise ValueError(f"factors {factors!r}, expected one of {', '.join(FACTOR_SETS)}")
            circumstances = (header["run"], header["round"], header["base"], header["num_examples"])
            if [type(value) for value in circumstances] != [str, int, str, int]:
                raise ValueError("run and base must be strings, round and num_examples integers")
            if not 0 <= header["round"] <= MAX_ROUND:
                raise ValueError(f"the round is {header['round']!r:.40}, expected 0 to {MAX_ROUND}")
            return cls(
                codec=CODECS[header["codec"]],
                task=Task(**header["task"]),
                plan=_Plan.read(header, factors),
                frozen=None if header["side"] is None else _Plan.read(header["side"], "AB"),
                extras=_extra_shapes(header.get("extras", [])),
                metrics={name: _number(value, f"metric {name}") for name, value in header["metrics"].items()},
                circumstances=circumstances,
            )
        except (KeyError, ValueError, TypeError, AttributeError, ConfigError, OverflowError) as error:
            raise UpdateError("bad-header", f"not the header of an update: {type(error).__name__}: {error}") from None

    def shapes(self) -> list[tuple[int, ...]]:
        """Of all that travels, in order."""
        return [*self.plan.shapes(), *(self.frozen.shapes() if self.frozen else ()), *self.extras.values()]


def _extra_shapes(told: object) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the extra tensors. Raises ValueError or TypeError."""
    if not isinstance(told, list) or len(told) > MAX_EXTRAS:
        raise ValueError(f"extras must be at most {MAX_EXTRAS} tensors, got {told!r:.80}")
    shapes = {name: tuple(shape) for name, *shape in told}
    for name, shape in shapes.items():
        if type(name) is not str or len(shape) not in (1, 2) or any(type(size) is not int for size in shape):
            raise ValueError(f"an extra tensor must be its name and one or two integers, got {[name, *shape]!r:.80}")
        if any(not 1 <= size < 1 << 32 for size in shape):
            raise ValueError(f"the shape of {name!r:.80} is out of range")
    if len(shapes) != len(told):
        raise ValueError("an extra tensor is there twice")
    return shapes


def _described(adapter: Adapter) -> dict[str, Any]:
    return {
        "lora": config_values(adapter.config),
        "modules": [[module, *pair.shape] for module, pair in adapter.pairs.items()],
    }


# Keys that a device of an earlier version does not know: without them it reads all that it can compute with.
_LATER, _UNSET = ("layers", "method", "projection_prng_key", "num_virtual_tokens"), LoraConfig()


def config_values(config: LoraConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    plain = {
        name: getattr(config, name)
        for name in LoraConfig.__dataclass_fields__
        if name not in _LATER or getattr(config, name) != getattr(_UNSET, name)
    }
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def _number(value: object, what: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{what} must be a number, got {value!r:.40}")
    return float(value)  # type: ignore[arg-type]


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
        header = parse_json(bytes(view[_PREAMBLE_BYTES:end]))
    except (ValueError, RecursionError) as error:
        raise UpdateError("bad-header", f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise UpdateError("bad-header", f"the header must be a JSON object, got {type(header).__name__}")
    return header, view[end:]
