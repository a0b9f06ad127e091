"""Fixtures of the core's tests; `tests.tiny.checkpoints` makes what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_shape, tiny_pack, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny checkpoint of the test's own, in a directory where nothing else is."""
    return write_checkpoint(tmp_path / "source" / "tiny-llama")


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    """One opened pack that all tests share: copy its directory before changing anything."""
    folder = tmp_path_factory.mktemp("pack")
    return tiny_pack(folder / "pack", write_checkpoint(folder / "tiny-llama"))


@pytest.fixture
def adapter() -> Adapter:
    """A random adapter of rank 4 on every linear module of the tiny model."""
    return adapter_on(LoraConfig(rank=4, alpha=8.0), llama_shape().linear_modules())
