"""One version of an adapter, and the right to use it for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from fedlora.row_lora.layout import AdapterLayout
from numpy.typing import NDArray

# {adapter input of the graph `compat`: value}, read-only; or laid out for the graph `kernel`
AdapterValues = Mapping[str, NDArray[np.float32]] | AdapterLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """The values of one adapter, under its name. Whatever is computed with it is known by its digest, never its name."""

    name: str
    digest: str  # of its values, however they were stored: `digest_of`
    number: int  # 1 for the first that was loaded under its name, and one more each time
    values: AdapterValues
    rank: int  # the largest of its modules
    size_bytes: int
    source: Path


class Lease(Protocol):
    """An adapter in use: it stays in memory, as it is, until it is released."""

    @property
    def version(self) -> AdapterVersion: ...

    def release(self) -> None:
        """Done with it. A second time does nothing."""
        ...
