"""docs/serving.md does what it says: its commands and its examples run against a service that was started as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ENVIRONMENT, PROJECT, blocks, run, run_shell, write_beginning

TEXT = (PROJECT / "docs" / "serving.md").read_text(encoding="utf-8")
SHELL, PYTHON, TOML = (blocks("docs/serving.md", language) for language in ("sh", "python", "toml"))
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the first commands make."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("README.md", "CHANGELOG.md"):
        write_beginning(folder / name, name)
    run_shell(SHELL[0], folder, tmp_path_factory)
    return folder


@pytest.fixture(scope="module")
def address(made: Path) -> Iterator[str]:
    """Where the service is that the second commands start, on a port that is free."""
    process = subprocess.Popen(
        ["bash", "-ec", SHELL[1].replace("fedlora serve", "exec fedlora serve --port 0")],
        cwd=made, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, process.communicate()[1]
        assert line.replace(found[0], ADDRESS) in TEXT
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_openai_package_is_answered_by_the_base_and_by_an_adapter(made: Path, address: str) -> None:
    (example,) = PYTHON
    output = run([sys.executable, "-c", example.replace(ADDRESS, address)], made)
    base, mine = re.findall(r"^(?:model|mine): (.*)$", output, re.MULTILINE)
    assert base != mine


def test_curl_completes_and_loads_replaces_and_unloads_an_adapter(made: Path, address: str) -> None:
    complete, change, together = (block.replace(ADDRESS, address) for block in SHELL[2:])
    assert '"model":"mine"' in run(["bash", "-ec", complete], made)
    said = run(["bash", "-ec", change], made)
    assert re.findall(r"'(\w+)' (added|removed) successfully", said) == [
        ("other", "added"), ("mine", "added"), ("other", "removed"),
    ]  # fmt: skip
    said = run(["bash", "-ec", f"{change.splitlines()[0]}\n{together}"], made)
    assert '"model":"model"' in said
    assert '"text":' in said


def test_the_configuration_is_one_that_is_read(made: Path) -> None:
    from fedlora_serve.http.service.config_file import read_config

    (content,) = TOML
    (made / "serve.toml").write_text(content, encoding="utf-8")
    for name in ("admin.key", "web.key"):
        (made / name).write_text(f"{name}-0123456789", encoding="utf-8")
        (made / name).chmod(0o600)
    config = read_config(made / "serve.toml", {}, {})
    assert [key.name for key in config.keys] == ["web"]
    assert config.limits.max_tokens == 1024
    assert config.admin is not None
