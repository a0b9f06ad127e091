"""The reader of imports sees every kind of them, and what is wrong with some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.import_graph import circle_in, graph_of, imports_in, out_of_order

ROOMS = ("low", "wide.left", "wide.right", "high")
SOUND = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.high import top\n",
    "low/__init__.py": "",
    "low/floor.py": "import numpy\n",
    "wide/__init__.py": '"""Two rooms."""\n',
    "wide/left.py": "from house.low.floor import tile\n",
    "wide/right.py": "from house.wide import left\n",
    "high.py": "from house.wide.right import lamp\n",
}


def house(folder: Path, changed: Mapping[str, str] | None = None) -> Path:
    """A package of the files of SOUND, with some that are changed or added."""
    for file, source in {**SOUND, **(changed or {})}.items():
        path = folder / "house" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder / "house"


def test_every_kind_of_import_is_seen() -> None:
    source = (
        "import torch.nn as nn, os\nfrom flwr.app import Message\nfrom . import x\nfrom ..y import z\n"
        "def f():\n    import onnx\n    importlib.import_module('ray.data')\n"
        "if TYPE_CHECKING:\n    import jax\n"
    )
    found = list(imports_in(source, "house.wide"))
    assert {(entry.line, entry.name) for entry in found} == {
        (1, "torch.nn"), (1, "os"), (2, "flwr.app.Message"), (3, "house.wide.x"), (4, "house.y.z"), (6, "onnx"),
        (7, "ray.data"), (9, "jax"),
    }  # fmt: skip
    assert [entry.name for entry in found if entry.for_types] == ["jax"]


def test_a_package_in_order_is_found_so(tmp_path: Path) -> None:
    graph = graph_of(house(tmp_path))
    assert graph["house.wide.right"] == {"house.wide.left": 1}
    assert out_of_order(graph, ROOMS) == []
    assert circle_in(graph) == []


def test_an_import_of_a_higher_room_is_seen_inside_a_function_too(tmp_path: Path) -> None:
    graph = graph_of(house(tmp_path, {"low/floor.py": "def f():\n    from house.high import top\n"}))
    assert out_of_order(graph, ROOMS) == ["house.low.floor:2 imports house.high, which stands above it"]


def test_rooms_side_by_side_in_a_package_have_an_order_too(tmp_path: Path) -> None:
    graph = graph_of(house(tmp_path, {"wide/left.py": "from house.wide.right import lamp\n", "wide/right.py": ""}))
    assert out_of_order(graph, ROOMS) == ["house.wide.left:1 imports house.wide.right, which stands above it"]


def test_no_room_imports_the_face_of_its_package(tmp_path: Path) -> None:
    graph = graph_of(house(tmp_path, {"high.py": "from house import top\n"}))
    assert out_of_order(graph, ROOMS) == ["house.high:1 imports house, which stands above it"]


def test_what_stands_in_no_room_is_seen(tmp_path: Path) -> None:
    graph = graph_of(house(tmp_path, {"shed.py": "", "wide/__init__.py": "from house.low import floor\n"}))
    assert out_of_order(graph, ROOMS) == ["house.shed stands in no room", "house.wide stands in no room"]


def test_a_circle_is_seen_whole(tmp_path: Path) -> None:
    files = {
        "low/floor.py": "from house.low import wall\n",
        "low/wall.py": "def f():\n    import house.low.floor\n",
    }
    graph = graph_of(house(tmp_path, files))
    assert out_of_order(graph, ROOMS) == []
    circle = circle_in(graph)
    assert circle[0] == circle[-1]
    assert set(circle) == {"house.low.floor", "house.low.wall"}


def test_only_a_face_may_import_for_type_checkers_what_would_be_a_circle(tmp_path: Path) -> None:
    for_types = "if TYPE_CHECKING:\n    from house.wide.right import lamp\n"
    assert circle_in(graph_of(house(tmp_path / "one", {"wide/left.py": for_types})))
    assert not circle_in(graph_of(house(tmp_path / "other", {"wide/__init__.py": for_types})))
