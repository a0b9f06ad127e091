"""A package of plug-ins, as pip leaves it in a folder: without a network, and out of the environment of the tests."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, project: str, modules: Mapping[str, str]) -> None:
    """Install the package of a pyproject.toml; `modules` are its files."""
    content = tomllib.loads(project)["project"]
    name, version = content["name"], content["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = []
    for group, points in content.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file, code in modules.items():
        (folder / file).write_text(code, encoding="utf-8")
