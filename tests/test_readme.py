"""The README's first steps do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def test_the_first_steps_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    block = re.search(r"```sh\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    activation, *commands = block[1].splitlines()
    assert activation == ". .venv/bin/activate"
    for name in ("simulations", "README.md"):
        (tmp_path / name).symlink_to(PROJECT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-ec", "\n".join(commands)],
        cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    base, tuned = result.stdout.split("def main(")[1:]
    assert base.strip()
    assert tuned.strip()
    assert base != tuned, "the adapter changed nothing"
