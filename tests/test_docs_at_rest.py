"""docs/at-rest.md: its commands do what it says, and the format is the one that is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.cli import commands
from fedlora.files import at_rest
from fedlora.files.at_rest_key import ID_BYTES, VARIABLE, WRAPPED_BYTES
from fedlora.files.streaming_aead import SEGMENT_BYTES

PROJECT = Path(__file__).resolve().parents[1]
TEXT = (PROJECT / "docs" / "at-rest.md").read_text(encoding="utf-8")
(SCRIPT,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def test_its_commands_write_and_read_an_encrypted_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(at_rest, "_keys", {})
    (tmp_path / "README.md").write_text("The kitchen is warm. " * 200)
    for line in SCRIPT.strip().splitlines():
        setting, _, rest = line.rpartition("fedlora ")
        monkeypatch.setenv(VARIABLE, setting.strip().partition("=")[2])
        done = CliRunner().invoke(commands, rest.split(), catch_exceptions=False)
        assert done.exit_code == 0, (line, done.output)
    weights = tmp_path / "mine" / "adapter_model.safetensors"
    assert weights.read_bytes().startswith(at_rest.MAGIC)
    rewrap = re.findall(r"^    fedlora (key rewrap mine .*)$", TEXT, re.MULTILINE)[0].replace("new.key", "at-rest.key")
    assert CliRunner().invoke(commands, rewrap.split(), catch_exceptions=False).output == "decrypted: 1\n"
    assert not weights.read_bytes().startswith(at_rest.MAGIC)


def test_the_format_is_the_one_that_is_written() -> None:
    assert f'"{at_rest.MAGIC.decode()}" ({len(at_rest.MAGIC)} bytes)' in TEXT
    assert f"id of the key ({ID_BYTES}) | data key, wrapped ({WRAPPED_BYTES})" in TEXT
    assert SEGMENT_BYTES == 1 << 20
    assert "segments of 1 MiB" in TEXT


def test_the_switch_has_the_name_that_is_told() -> None:
    for place in ("client/fedlora_client/service/config.py", "server/fedlora_server/fleet/settings.py",
                  "serve/fedlora_serve/http/service/config.py"):  # fmt: skip
        assert "at_rest_key: str" in (PROJECT / place).read_text(encoding="utf-8")
    assert f"`{VARIABLE}=SOURCE`" in TEXT
