"""`fedlora update`: pinned in a device.toml, or told by options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.cli import commands
from fedlora.errors import ConfigError, ReleaseError
from fedlora_client.service.config import read_device
from fedlora_client.updating.configured import settings_of

from tests.client.service.devices import make_device
from tests.client.updating.conftest import Fleet


def run(*arguments: object) -> str:
    done = CliRunner().invoke(commands, ["update", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def pinned(fleet: Fleet) -> Path:
    """The device.toml of a device that follows the fleet's repository."""
    path = make_device(fleet.folder / "device", fleet.base).path
    told = run(
        "init", fleet.server.url, "--config", path, "--root", fleet.settings.root, "--trust", fleet.folder / "release.pub",
        "--name", "tone",
    )  # fmt: skip
    assert "next: fedlora update" in told
    return path


def test_a_pinned_device_updates_and_tells_what_is_in_use(fleet: Fleet, pinned: Path) -> None:
    fleet.publish(1)
    assert run("--config", pinned) == "tone 1 is in use\n"
    assert run("--config", pinned) == "tone 1 is in use, and the newest\n"
    lines = run("--config", pinned, "--status").splitlines()
    assert lines[0] == "tone, channel stable"
    assert lines[1].startswith("in use     1, signed by ")
    told = json.loads(run("--config", pinned, "--status", "--json"))
    assert (told["current"]["version"], told["newest"], told["served"]) == (1, 1, "")
    assert json.loads(run("--config", pinned, "--json"))["result"] == "unchanged"


def test_what_is_pinned_does_not_depend_on_the_files_that_were_given(fleet: Fleet, pinned: Path) -> None:
    fleet.settings.root.unlink()
    (fleet.folder / "release.pub").unlink()
    fleet.publish(1)
    run("--config", pinned)
    settings = settings_of(read_device(pinned))
    assert settings.root.parent == pinned.parent
    assert settings.folder == pinned.parent / "state" / "releases"
    with pytest.raises(ConfigError, match="has an \\[update\\]"):
        run(
            "init",
            fleet.server.url,
            "--config",
            pinned,
            "--root",
            settings.root,
            "--trust",
            settings.keys[0],
            "--name",
            "x",
        )


def test_options_alone_are_enough(fleet: Fleet) -> None:
    fleet.publish(1, channel="canary")
    options = [
        "--url", fleet.server.url, "--name", "tone", "--channel", "canary", "--root", fleet.settings.root, "--trust",
        fleet.folder / "release.pub", "--base", fleet.base.directory, "--folder", fleet.folder / "releases", "--watch", 0,
    ]  # fmt: skip
    assert "tone 1 is in use" in run(*options)
    assert fleet.in_use == 1
    with pytest.raises(ConfigError, match="expected --base"):
        run(*options[:10])
    with pytest.raises(ConfigError, match="--name"):
        run("--name", "x")


def test_a_file_that_is_no_root_is_not_pinned(fleet: Fleet) -> None:
    path = make_device(fleet.folder / "device", fleet.base).path
    before = path.read_text()
    wrong = fleet.folder / "wrong.json"
    metadata = fleet.repository.path / "metadata"
    content = json.loads(fleet.settings.root.read_text())
    content["signed"]["version"] = 2
    forged = json.dumps(content)
    for content in ("{}", (metadata / "timestamp.json").read_text(), forged):
        wrong.write_text(content)
        with pytest.raises(ConfigError, match="fedlora publish init"):
            run(
                "init",
                fleet.server.url,
                "--config",
                path,
                "--root",
                wrong,
                "--trust",
                fleet.folder / "release.pub",
                "--name",
                "x",
            )
    assert path.read_text() == before


def test_a_device_without_a_repository_is_told_how_to_pin_one(fleet: Fleet) -> None:
    path = make_device(fleet.folder / "device", fleet.base).path
    with pytest.raises(ConfigError, match="fedlora update init"):
        run("--config", path)
    with pytest.raises(ConfigError, match="there is no device"):
        run("--config", fleet.folder / "nowhere.toml")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("url", "ftp://x", "http://"), ("channel", "beta", "channel"), ("name", "a/b", "cannot be called"),
     ("max_mb", 0, "max_mb"), ("timeout_s", 0, "timeout_s")],
)  # fmt: skip
def test_an_update_section_that_cannot_be_is_refused(
    fleet: Fleet, pinned: Path, key: str, value: object, told: str
) -> None:
    lines = [line for line in pinned.read_text().splitlines() if not line.startswith(f"{key} =")]
    pinned.write_text("\n".join([*lines, f"{key} = {json.dumps(value)}"]) + "\n")
    if key == "name":
        pinned.write_text(
            pinned.read_text().replace('name = "kitchen"\n', "").replace("[device]", '[device]\nname = "kitchen"')
        )
    with pytest.raises((ConfigError, ReleaseError), match=told):
        run("--config", pinned)


def test_a_refused_release_is_status_1(fleet: Fleet, pinned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.publish(1)
    from fedlora_client.updating import update as module

    monkeypatch.setattr(
        module.update, "__kwdefaults__", {**(module.update.__kwdefaults__ or {}), "watch": lambda *_: "it died"}
    )
    done = CliRunner().invoke(commands, ["update", "--config", str(pinned)])
    assert isinstance(done.exception, ReleaseError)
    assert "it died" in str(done.exception)
