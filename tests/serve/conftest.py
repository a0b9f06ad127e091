"""Packs of tiny models, each made once, and their graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.pack import BasePack, open_pack
from fedlora_export.export import export_base
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
    graph, _ = export_base(base, tmp_path_factory.mktemp("served") / "model")
    assert open_pack(graph.parent).fingerprint == base.fingerprint
    return graph.parent


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    return Engine(model, threads=1)
