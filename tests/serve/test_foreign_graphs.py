"""A folder is served only if its graph is the one that belongs to its base: nothing else reaches ONNX Runtime."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
from fedlora.base.pack import open_pack
from fedlora.cli import main
from fedlora.errors import GraphError
from fedlora.exported.profiles import Profile, graph_name
from fedlora_export.checks.verify import verify_folder
from fedlora_export.export import export_base
from fedlora_serve.batching.engine import BatchEngine
from fedlora_serve.batching.row_session import open_rows
from fedlora_serve.embedding import Embedder
from fedlora_serve.local.engine import Engine

from tests.serve.changed_graphs import CHANGES, change_graph, endless
from tests.tiny.encoders import BARE, encoder_pack
from tests.tiny.families import FAMILIES, family_pack

BEFORE = Path(__file__).parents[1] / "before" / "exported"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs of one sequence, of rows and of the operator in C: for reading."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    export_base(family_pack(next(iter(FAMILIES))), folder, profiles=("compat", "rows", "kernel"))
    return folder


@pytest.fixture(scope="module")
def sound_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "encoder"
    export_base(encoder_pack(next(iter(BARE))), folder, profiles=("compat",))
    return folder


@pytest.fixture
def own(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is never asked."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(ort, "InferenceSession", refuse)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("name", CHANGES)
def test_what_somebody_changed_is_refused_before_it_runs(own: Path, name: str) -> None:
    change_graph(own / "decoder.onnx", CHANGES[name])
    with pytest.raises(GraphError, match=r"decoder\.onnx: .*export it again") as caught:
        Engine(own, threads=1)
    with pytest.raises(GraphError) as verified:
        list(verify_folder(own))
    assert str(caught.value) == str(verified.value)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("profile", ["kernel", "rows"])
def test_the_service_refuses_it_too(own: Path, profile: Profile) -> None:
    if profile == "rows":
        (own / "decoder.kernel.onnx").unlink()
    change_graph(own / graph_name(open_pack(own).model, profile), endless)
    with pytest.raises(GraphError, match="'Loop': an attribute has graph; expected what"):
        BatchEngine(own, threads=1)


@pytest.mark.usefixtures("no_session")
def test_an_encoder_is_held_to_it_too(sound_encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(sound_encoder, tmp_path / "model")
    change_graph(tmp_path / "model" / "encoder.onnx", endless)
    with pytest.raises(GraphError, match="'Loop': an attribute has graph; expected what"):
        Embedder(tmp_path / "model", threads=1)


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_command_says_so_in_one_line(
    own: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for graph in ("decoder.onnx", "decoder.kernel.onnx"):
        change_graph(own / graph, endless)
    arguments = {"generate": ["--prompt", "a"], "serve": ["--port", "0"]}[command]
    monkeypatch.setattr(sys, "argv", ["fedlora", command, str(own), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "'Loop': an attribute has graph; expected what the exporter writes: export it again" in line


def linked_graph(folder: Path) -> None:
    (folder / "decoder.onnx").rename(folder / "other.onnx")
    (folder / "decoder.onnx").symlink_to("other.onnx")


def linked_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights")
    (folder / "model.safetensors").symlink_to(folder.parent / "weights")


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("link", [linked_graph, linked_weights])
def test_files_that_lie_elsewhere_are_not_followed(own: Path, link: Callable[[Path], None]) -> None:
    link(own)
    with pytest.raises(GraphError, match="expected a file, no link"):
        Engine(own, threads=1)


def test_the_bytes_that_were_checked_are_those_that_run(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ort.InferenceSession

    def swapped(model: object, *arguments: object, **options: object) -> object:
        change_graph(own / "decoder.onnx", endless)  # between the check and the use
        return original(model, *arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", swapped)
    assert Engine(own, threads=1).start().step([1]).size > 0


@pytest.mark.parametrize("profile", ["kernel", "rows"])
def test_a_folder_of_an_earlier_version_is_served(tmp_path: Path, profile: Profile) -> None:
    shutil.copytree(BEFORE, tmp_path / "exported")
    if profile == "rows":
        (tmp_path / "exported" / "decoder.kernel.onnx").unlink()
    assert open_rows(open_pack(tmp_path / "exported"), threads=1).manifest.profile == profile
