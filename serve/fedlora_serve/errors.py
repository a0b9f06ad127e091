"""What goes wrong in serving beside what the core knows (`fedlora.errors`); `http.protocol.errors` tells it to clients."""

from __future__ import annotations

from fedlora.errors import FedloraError


class BusyError(FedloraError):
    """The queue is full, or the engine is closing; try again later."""
