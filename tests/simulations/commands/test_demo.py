"""`fedlora demo`: a device's name is its own word, and never a part of a path."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig, ServerConfig
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.terminal import Terminal
from fedlora_server.run.run_directory import RunDirectory
from fedlora_simulations.alone import AloneResult
from fedlora_simulations.commands.demo import _answer

from tests.tiny.adapters import random_adapter


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/b", "..", "a" * 300, "\u202e"])
def test_what_a_device_is_called_writes_nothing_outside_of_the_run(
    tmp_path: Path, base: BasePack, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    adapter, loaded = random_adapter(base), list[Path]()

    def export_base(pack: BasePack, output: Path) -> list[Any]:
        output.mkdir()
        return [SimpleNamespace(exact={})]

    def load_adapter(path: Path) -> None:
        loaded.append(path)

    monkeypatch.setattr("fedlora_export.export.export_base", export_base)
    engine = SimpleNamespace(load_adapter=load_adapter)
    monkeypatch.setattr("fedlora_serve.local.engine.Engine", lambda folder: engine)
    monkeypatch.setattr("fedlora_serve.local.generate.generate", lambda *_, **__: ["x"])
    run = tmp_path / "place" / "run"
    config = RunConfig(base=str(base.directory), server=ServerConfig(rounds=1))
    content = PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint)
    write_peft(RunDirectory.adapter_of(run, 1), content)
    alone = [AloneResult(device=name, train_bytes=1, adapter=adapter, loss=1.0)]
    _answer(config, run, alone, "a prompt", 4, Terminal())
    assert {path.name for path in loaded} == {"federated.onnx_adapter", "alone.onnx_adapter"}
    assert {path.parent for path in loaded} == {run / "model"}
    assert (run / "alone" / "adapter_config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["run"]
