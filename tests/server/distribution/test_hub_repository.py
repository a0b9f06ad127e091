"""A release on a hub, written by the hub's own client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ReleaseError
from fedlora.identity.keys import SigningKey
from fedlora.release.folder import read_release
from fedlora_server.distribution.hub_repository import _check_is_ours

from tests.tiny.fake_hub import FakeHub, fake_hub
from tests.tiny.releases import write_release

pytest.importorskip("huggingface_hub", reason="not installed: pip install fedlora[hub]")
KEY = SigningKey.generate()
TOKEN = "hf_NobodyMaySeeThisToken"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(TOKEN) as hub:
        yield hub


def publish(hub: FakeHub, folder: Path, *options: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its environment once."""
    if not (public := folder.parent / "k.pub").exists():
        KEY.public.write(public)
    home = folder.parent / "home"
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(home), "HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", "from fedlora.cli import main; main()", "publish", "hub", str(folder), "me/tone"]
    done = subprocess.run(
        [*command, "--trust", str(public), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert [path for path in home.rglob("*") if path.is_file() and TOKEN in path.read_text(errors="replace")] == []
    return done


def downloaded(files: dict[str, bytes], to: Path) -> Path:
    for path, content in files.items():
        if path != ".gitattributes":
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_bytes(content)
    return to


def test_a_tag_holds_the_release_as_it_was_signed(hub: FakeHub, base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r3", base, KEY)
    done = publish(hub, tmp_path / "r3", "--private")
    assert (done.returncode, done.stdout) == (0, "tone 3 is v3 of me/tone\n"), done.stderr
    assert hub.private["me/tone"]
    assert any(each.startswith("PUT /lfs/") for each in hub.asked)
    hub.files["me/tone"]["adapter/of-before.bin"] = b"x"
    write_release(tmp_path / "r4", base, KEY, seed=4, version=4)
    assert publish(hub, tmp_path / "r4").returncode == 0
    assert {
        tag: read_release(downloaded(files, tmp_path / tag), [KEY.public]).manifest.version
        for tag, files in hub.tags["me/tone"].items()
    } == {"v3": 3, "v4": 4}
    again = publish(hub, tmp_path / "r4")
    assert again.returncode == 1 and "it has a tag v4 already" in again.stderr
    before = publish(hub, tmp_path / "r3")
    assert before.returncode == 1 and "it gives out v4 already, and this is v3" in before.stderr


def test_a_repository_with_files_of_others_is_left_alone(hub: FakeHub, base: BasePack, tmp_path: Path) -> None:
    with pytest.raises(
        ReleaseError, match=r"'README.md' and 1 more, which no release"
    ):  # a model's, in nobody's release
        _check_is_ours("me/tone", ["model.safetensors", "README.md"])
    write_release(tmp_path / "r", base, KEY)
    theirs = {".gitattributes": b"", "thesis.pdf": b"x", "release.json": b"{}"}
    hub.files["me/tone"], hub.tags["me/tone"] = dict(theirs), {}
    done = publish(hub, tmp_path / "r")
    assert done.returncode == 1 and "'thesis.pdf', which no release has put there" in done.stderr
    assert (hub.files["me/tone"], hub.tags["me/tone"]) == (theirs, {})


def test_a_publisher_that_was_cut_off_before_the_tag_is_called_again(
    hub: FakeHub, base: BasePack, tmp_path: Path
) -> None:
    write_release(tmp_path / "r", base, KEY)
    hub.refuses_tags = True
    done = publish(hub, tmp_path / "r")
    assert done.returncode == 1 and "the hub cannot be written to" in done.stderr and done.stderr.count("\n") == 1
    hub.refuses_tags = False
    assert publish(hub, tmp_path / "r").returncode == 0
    read_release(downloaded(hub.tags["me/tone"]["v3"], tmp_path / "v3"), [KEY.public])


def test_a_token_that_is_refused_is_told_and_not_shown(hub: FakeHub, base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY)
    hub.token = "hf_Another"
    done = publish(hub, tmp_path / "r")
    assert done.returncode == 1 and "hf auth login" in done.stderr and hub.files == {}


def test_a_hub_that_is_not_there_is_told(hub: FakeHub, base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY)
    hub.server.shutdown()
    hub.server.server_close()
    done = publish(hub, tmp_path / "r")
    assert done.returncode == 1 and "the hub cannot be written to" in done.stderr and done.stderr.count("\n") == 1


def test_what_nobody_trusted_signed_is_not_uploaded(hub: FakeHub, base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, SigningKey.generate())
    done = publish(hub, tmp_path / "r")
    assert done.returncode == 1 and "signed by" in done.stderr and hub.asked == []
