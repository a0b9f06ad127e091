"""Named buffers that outlive a step, so that a step allocates nothing of the size of an activation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Each trainer has its own; a buffer belongs to whoever uses its name until that name is asked for again."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._parts: dict[str, Workspace] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor whose values are those of its last use: finite, and 0 at first."""
        key = (name, shape)
        view = self._views.get(key)
        if view is None:
            size, held = math.prod(shape), self._buffers.get(name)
            if held is None or held.numel() < size:
                held = torch.zeros(size, dtype=self.dtype, device=self.device)
                self._buffers[name] = held
                self._views = {other: kept for other, kept in self._views.items() if other[0] != name}
            view = self._views[key] = held[:size].view(shape)
        return view

    def part(self, name: str) -> Workspace:
        """A workspace of its own inside this one."""
        return self._parts.setdefault(name, Workspace(self.device, self.dtype))

    @property
    def size_bytes(self) -> int:
        own = sum(buffer.nbytes for buffer in self._buffers.values())
        return own + sum(part.size_bytes for part in self._parts.values())
