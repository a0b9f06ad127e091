"""Aggregation methods, one a file: the entry points of the group fedlora.methods."""

from __future__ import annotations

from fedlora.errors import ConfigError
from fedlora.plugins import Plugins

from fedlora_server.methods.method import Method

METHODS = Plugins(group="fedlora.methods", noun="method", key="server.method")


def find_method(name: str) -> type[Method]:
    """Raises ConfigError for an unknown name, MissingExtraError for a method that needs what is not installed."""
    found = METHODS.load(name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"server.method: {name} is {found!r}; expected a subclass of fedlora_server.Method")
    return found
