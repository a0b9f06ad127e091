"""The service of a device that follows releases: it watches their folder, and takes their name signed alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora_client.supervision.run import _serve_command
from fedlora_serve.commands import serve as command

from tests.client.service.devices import make_device

UPDATE = '[serve]\nmodel = "model"\n[update]\nurl = "https://x"\nname = "tone"\nroot = "r.json"\nkeys = ["a.pub"]\n'


def test_its_command_is_one_that_fedlora_serve_takes(base: BasePack, tmp_path: Path) -> None:
    config = make_device(tmp_path, base, UPDATE)
    words = _serve_command(config)
    arguments = words[words.index("serve") + 1 :]
    assert f"tone={tmp_path / 'a.pub'}" in arguments
    assert arguments[arguments.index("--releases") + 1] == str(tmp_path / "state" / "releases")
    done = CliRunner().invoke(command.serve, arguments)  # which finds no model, and no fault with an option
    assert done.exit_code == 1, done.output
    assert "model" in str(done.exception)


def test_without_releases_nothing_is_said_of_them(base: BasePack, tmp_path: Path) -> None:
    config = make_device(tmp_path, base, '[serve]\nmodel = "model"\n')
    assert not [word for word in _serve_command(config) if word.startswith("--release")]


@pytest.mark.parametrize("name", ["", "federated"])
def test_a_release_has_a_name_that_is_not_of_what_is_trained_here(base: BasePack, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"update\.name"):
        make_device(tmp_path, base, UPDATE.replace('"tone"', f'"{name}"'))
