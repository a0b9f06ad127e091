"""`make fuzz` for some seconds: every reader takes its sound folder, nothing is found, and what would be is kept."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from fedlora.errors import ConfigError
from fedlora_export.export import build_graph

from tests.fuzz import __main__ as command
from tests.fuzz import child, formats, graphs, structures
from tests.fuzz.formats import changed
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS
from tests.fuzz.structures import mutated
from tests.tiny.checkpoints import tiny_pack, write_checkpoint

SOUND = json.dumps({"a": [1, {"b": "text"}], "c": {"d": None, "e": 0.5}}).encode()
# These take seconds to make; `make fuzz` has them.
QUICK = [name for name in READERS if name not in ("encoder", "exported folder")]


@pytest.mark.parametrize("name", QUICK)
def test_a_reader_takes_its_sound_folder_and_then_finds_nothing_in_changed_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (formats, structures):
        monkeypatch.setattr(module, "COUNTS", (2, 17, 300))  # for seconds, not minutes
    reader = READERS[name](tmp_path)
    for file in reader.names:
        assert child.read_once(reader, reader.folder, file) == "", file
    chance, found = random.Random(7), []
    for number in range(6):
        place = tmp_path / f"changed-{number}"
        file = child.change(reader, place, chance)
        found.append(child.read_once(reader, place, file))
    assert set(found) <= {"", "refused"}


@pytest.mark.parametrize("seed", range(200))
def test_a_document_that_goes_too_far_is_still_text_of_bounded_size(seed: int) -> None:
    text = mutated(json.loads(SOUND), random.Random(seed), ("other.json",))
    assert 0 < len(text) < 20_000_000
    assert text != SOUND.decode()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.toml", "a.jinja", "a.csv", "a.txt"])
def test_the_same_chance_changes_a_file_in_the_same_way(name: str) -> None:
    data = b'x = 1\n[table]\ny = "z"\n' if name.endswith("toml") else SOUND
    first, second = (changed(name, data, random.Random(3), ("b.json",)) for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def sound_graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    base = tiny_pack(
        tmp_path_factory.mktemp("graph") / "pack", write_checkpoint(tmp_path_factory.mktemp("graph") / "c")
    )
    return bytes(ir.to_proto(build_graph(base, "compat", 0)).SerializeToString())


@pytest.mark.parametrize("change", graphs._CHANGES, ids=lambda change: change.__name__)
def test_every_change_of_a_graph_makes_another_file_of_bounded_size(change: graphs.Change, sound_graph: bytes) -> None:
    others = set()
    for seed in range(20):
        model = onnx.ModelProto.FromString(sound_graph)
        written = change(model, random.Random(seed), ("model.safetensors",))
        content = model.SerializeToString() if written is None else written
        assert len(content) < 40_000_000
        others.add(content)
    assert len(others - {sound_graph}) > 2


def test_subgraphs_within_one_another_are_what_protobuf_reads() -> None:
    node = onnx.NodeProto.FromString(graphs.nested_subgraphs(3))
    assert node.attribute[0].g.node[0].attribute[0].g.node[0].op_type == "Loop"


def raises(error: BaseException) -> Callable[[Path, str], object]:
    def read(place: Path, name: str) -> object:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "told"),
    [(ConfigError("here: no"), "refused"), (ValueError("no"), "ValueError: no"), (MemoryError(), "MemoryError")],
)
def test_an_error_of_ours_is_a_refusal_and_any_other_a_finding(tmp_path: Path, error: BaseException, told: str) -> None:
    assert told in child.read_once(Reader(tmp_path, ("a.json",), raises(error)), tmp_path, "a.json")


def test_what_is_found_is_kept_as_it_was_read_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> Reader:
        (folder / "sound").mkdir(parents=True)
        (folder / "sound" / "a.json").write_bytes(SOUND)

        def read(place: Path, name: str) -> None:
            if (place / name).read_bytes() != SOUND:
                raise KeyError(name)

        return Reader(folder / "sound", ("a.json",), read, are_messages=True)

    for module in (child, command):
        monkeypatch.setattr(module, "READERS", {"broken": broken})
    monkeypatch.setattr(child, "_limit_memory", lambda: None)
    child.read_for("broken", 0.5, 1, tmp_path)
    (finding,) = [path.parent for path in tmp_path.glob("*/finding.json") if path.parent.name != child.NOW]
    assert "KeyError: 'a.json'" in json.loads((finding / "finding.json").read_text())["why"]
    assert (finding / "input" / "a.json").read_bytes() != SOUND
    assert "KeyError: 'a.json'" in command.again(finding)


@pytest.mark.parametrize("ends", ["import os; os.abort()", "while True: pass", "raise SystemExit(3)"])
def test_a_process_that_ends_is_a_finding_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    (tmp_path / "reading.py").write_text(
        f"import signal\nsignal.setitimer(signal.ITIMER_PROF, 0.2)\n{ends}\n", encoding="utf-8"
    )
    monkeypatch.setattr(command, "child_command", lambda *told: [sys.executable, str(tmp_path / "reading.py")])
    tally = command.fuzz(0.1, tmp_path / "found", names=("update",))
    assert tally.findings
    assert (tally.findings[0] / "finding.json").is_file()
