"""The Python in the READMEs of core and export runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fedlora import PeftDirectory, open_pack, write_peft

from tests.tiny.adapters import random_adapter

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which a demo has run."""
    folder, base = tmp_path_factory.mktemp("snippets"), open_pack("nano")
    content = PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint)
    write_peft(str(folder / "runs/demo/rounds/0008/adapter"), content)
    return folder


@pytest.mark.parametrize("package", ["core", "export"])
def test_the_python_of_a_readme_runs(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / package / "README.md").read_text("utf-8"), re.M | re.S)
    assert snippets
    monkeypatch.chdir(folder)
    for snippet in snippets:
        exec(compile(snippet, f"{package}/README.md", "exec"), {})
