"""Packs of tiny models, each made once, and their graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnxruntime as ort
import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.exported.profiles import PROFILES
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.export import export_base

from tests.export.graph_runs import open_session
from tests.tiny.adapters import random_adapter
from tests.tiny.families import family_pack
from tests.tiny.llamas import DEFAULT, Packs, Variant


@pytest.fixture(scope="session")
def graphs(packs: Packs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], BasePack]:
    """The pack of a variant in a folder where its graphs lie too, exact ones."""
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def exported(variant: Variant) -> BasePack:
        folder_of = folder / f"model-{len(list(folder.iterdir()))}"
        for graph in export_base(packs(variant), folder_of, profiles=PROFILES, accuracy_level=FLOAT_ACCURACY):
            assert graph.exact is not None
        return open_pack(folder_of)

    return exported


@pytest.fixture(scope="session")
def session(graphs: Callable[[Variant], BasePack]) -> ort.InferenceSession:
    """A session on the graph of the one tiny pack."""
    return open_session(graphs(DEFAULT).directory / "decoder.onnx")


@pytest.fixture(scope="session")
def exported_folder(packs: Packs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every profile's graph and one adapter: for reading, it is shared."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_base(packs(DEFAULT), folder, profiles=PROFILES)
    base = open_pack(folder)
    write_onnx_adapter(random_adapter(base), base.fingerprint, folder / "first.onnx_adapter")
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BasePack]:
    """The pack of a family with its exact graph of the default profile and the files for genai: for reading, shared."""
    parent = tmp_path_factory.mktemp("family-folders")

    @cache
    def exported(family: str) -> BasePack:
        export_base(family_pack(family), parent / family, accuracy_level=FLOAT_ACCURACY)
        return open_pack(parent / family)

    return exported


@pytest.fixture
def own_folder(exported_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    shutil.copytree(exported_folder, tmp_path / "model")
    return tmp_path / "model"
