"""What the server's tests share: a tiny base, and a player of runs over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.base.quantize import Quantization
from fedlora.files.tensor_file import TensorFile, write_tensor_file
from fedlora.lora.config import LoraConfig

from tests.server.fake_grid import FINGERPRINT, SHAPE, Player
from tests.server.method_cases import CONFIGS

pytest.register_assert_rewrite("tests.server.method_contract")


@pytest.fixture
def tiny_base(tmp_path: Path) -> BasePack:
    """A base pack with a shape and a fingerprint; the server reads no weights."""
    weights = tmp_path / "weights.safetensors"
    write_tensor_file(weights, [], lambda plan: [])
    return BasePack(
        directory=tmp_path,
        source="tiny",
        fingerprint=FINGERPRINT,
        quantization=Quantization(),
        model=SHAPE,
        weights=TensorFile(weights),
    )


@pytest.fixture
def play(tiny_base: BasePack, tmp_path: Path) -> Player:
    return Player(tiny_base, tmp_path / "runs")


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def lora(request: pytest.FixtureRequest) -> LoraConfig:
    value: LoraConfig = request.param
    return value


@pytest.fixture(params=[1, 2], ids=["in the first round", "in the second round"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value
