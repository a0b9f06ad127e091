"""FILE.json beside FILE: what the file's own format has no place for, and the digest that binds the two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedlora.errors import FedloraError
from fedlora.files.documents import read_object

MAX_BYTES = 4 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
# {input name: shape}, with -1 for what is free: a rank, a number of labels or of virtual tokens
InputShapes = Mapping[str, tuple[int, ...]]


def sidecar_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def read_sidecar(
    path: Path,
    *,
    kind: str,
    version: int,
    fields: Mapping[str, type],
    error: type[FedloraError],
    optional: Mapping[str, type] = MappingProxyType({}),
) -> dict[str, Any]:
    """The content of a sidecar: `format` and `version` as expected, and `fields` with their types; `optional` ones may be.

    Every sidecar has `base`, `sha256`, `size_bytes` and `slots` too. Raises `error`.
    """
    values = read_object(path, error, f"a manifest of format {kind}", max_bytes=MAX_BYTES)
    if values.get("format") != kind or values.get("version") != version:
        raise error(
            f"{path}: format {values.get('format')!r:.80}, version {values.get('version')!r:.80}; this fedlora reads "
            f"{kind}, version {version}: export again"
        )
    expected = {"format": str, "version": int, "base": str, "sha256": str, "size_bytes": int, "slots": dict, **fields}
    expected |= {name: kind_ for name, kind_ in optional.items() if name in values}
    if values.keys() != expected.keys():
        raise error(f"{path}: expected the fields {', '.join(expected)}, got {', '.join(values)!r:.300}; export again")
    for name, wanted in expected.items():
        if type(values[name]) is not wanted:
            raise error(f"{path}: {name} must be {wanted.__name__}, got {values[name]!r:.80}; export again")
    for name in ("base", "sha256"):
        if not _DIGEST.fullmatch(values[name]):
            raise error(f"{path}: {name} is {values[name]!r:.80}; expected 64 hexadecimal digits: export again")
    values["slots"] = _inputs(values["slots"], path, error)
    return values


def _inputs(inputs: Mapping[str, object], path: Path, error: type[FedloraError]) -> InputShapes:
    result: dict[str, tuple[int, ...]] = {}
    for name, shape in inputs.items():
        if not isinstance(shape, list) or not 1 <= len(shape) <= 4 or any(type(n) is not int or n < -1 for n in shape):
            raise error(f"{path}: slots: {name!r:.120} is {shape!r:.80}; expected one to four sizes: export again")
        result[name] = tuple(shape)
    return result
