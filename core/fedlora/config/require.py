"""How a section of a configuration refuses a value: what is taken, and what came."""

from __future__ import annotations

from fedlora.errors import ConfigError


def require(ok: bool, what: str, got: object) -> None:
    """Raise ConfigError unless it is so."""
    if not ok:
        raise ConfigError(f"{what}, got {got!r}")
