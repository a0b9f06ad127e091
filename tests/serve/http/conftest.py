"""An encoder to serve, and adapters as they lie in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_export.export import export_base

from tests.serve.speakers import Speaker
from tests.tiny.encoders import save_encoder_pack


@pytest.fixture(scope="session")
def encoder_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder with its graph: for reading, it is shared."""
    folder = tmp_path_factory.mktemp("encoder")
    export_base(save_encoder_pack("bare bert", folder / "pack"), folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="session")
def adapter_folder(long_base: BasePack, speakers: Sequence[Speaker], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`speakers` as the PEFT directories adapter-0, adapter-1 ...: for reading, it is shared."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, speaker in enumerate(speakers):
        content = PeftDirectory(adapter=speaker.adapter, base_fingerprint=long_base.fingerprint)
        write_peft(folder / f"adapter-{number}", content)
    return folder
