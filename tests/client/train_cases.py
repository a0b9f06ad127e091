"""What tests of training share: windows of a text, and the numbers of an adapter."""

from __future__ import annotations

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from fedlora_client.data.windows import Windows, make_windows
from numpy.typing import NDArray

from tests.tiny.tokenizer import byte_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. "


def windows_of(base: BasePack, text: str = TEXT * 3, length: int = 12) -> Windows:
    return make_windows([text], byte_tokenizer(), base.shape, length, "test")


def factors_of(adapter: Adapter) -> dict[str, NDArray[np.float32]]:
    """{tensor name: value}"""
    return {f"{m}.{name}": getattr(pair, name) for m, pair in adapter.pairs.items() for name in ("lora_A", "lora_B")}


def assert_equal_bits(left: Adapter, right: Adapter) -> None:
    """Two adapters are one."""
    mine, theirs = factors_of(left), factors_of(right)
    assert left.config == right.config
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
