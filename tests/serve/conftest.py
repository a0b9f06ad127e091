"""Packs of tiny models, each made once, and their graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.exported.profiles import Profile
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.config import LoraConfig
from fedlora_export.export import export_base
from fedlora_serve.local.engine import Engine

from tests.serve.speakers import LONG, RANKS, ROW_PROFILES, Speaker, speaker
from tests.tiny.llamas import Packs


@pytest.fixture(scope="session")
def model(base: BasePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny pack with its graph: for reading, it is shared."""
    folder = tmp_path_factory.mktemp("served") / "model"
    export_base(base, folder, accuracy_level=FLOAT_ACCURACY)
    assert open_pack(folder).fingerprint == base.fingerprint
    return folder


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    return Engine(model, threads=1)


@pytest.fixture(scope="session")
def long_base(packs: Packs) -> BasePack:
    return packs(LONG)


@pytest.fixture(scope="session")
def folders(long_base: BasePack, tmp_path_factory: pytest.TempPathFactory) -> dict[Profile, Path]:
    """For each profile of rows a folder with its graph alone, and that of one sequence: for reading, they are shared."""
    result = {}
    for profile in ROW_PROFILES:
        result[profile] = tmp_path_factory.mktemp("rows") / profile
        export_base(long_base, result[profile], profiles=("compat", profile), accuracy_level=FLOAT_ACCURACY)
    return result


@pytest.fixture(scope="session")
def single(folders: dict[Profile, Path]) -> Engine:
    """The engine of one sequence: what every row is held against."""
    return Engine(folders["kernel"], threads=1)


@pytest.fixture(scope="session")
def speakers(long_base: BasePack) -> list[Speaker]:
    """An adapter of each of RANKS; one of them on some modules only."""
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in long_base.shape.linear_modules()))
    return [
        speaker(long_base, LoraConfig(rank=rank, alpha=8.0, target_modules=leaves if rank != 3 else leaves[:2]), rank)
        for rank in RANKS
    ]
