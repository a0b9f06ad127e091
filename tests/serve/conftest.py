"""Packs of tiny models, each made once, and their graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.pack import BasePack, open_pack
from fedlora_export.export import export_base
from fedlora_export.packed_layers import FLOAT_ACCURACY
from fedlora_serve.engine import Engine

from tests.models import DEFAULT, Packs, made_once


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    """The pack of a variant: for reading, it is shared."""
    return made_once(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def base(packs: Packs) -> BasePack:
    """One tiny pack."""
    return packs(DEFAULT)


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
