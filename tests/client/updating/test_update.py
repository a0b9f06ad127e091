"""A device takes the newest release, keeps the one before, goes back where the new one fails, and never gets worse."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from fedlora.errors import ConfigError, FedloraError, ReleaseError, SignatureError
from fedlora.identity.keys import SigningKey
from fedlora.release.canary import Canary, CanaryText
from fedlora.release.installed import INSTALLED, VERSIONS, InstalledVersion, read_installed, write_installed
from fedlora_client.updating.update import status

from tests.client.updating.conftest import Fleet
from tests.tiny.checkpoints import tree

CANARY = Canary(texts=(CanaryText(text="The kitchen", max_loss=9.0),))


def test_the_first_release_and_the_next_are_taken_and_the_one_before_is_kept(fleet: Fleet) -> None:
    fleet.publish(1)
    assert fleet.update().result == "installed"
    assert fleet.in_use == 1
    assert fleet.update().result == "unchanged"
    for version in (2, 3):
        fleet.publish(version)
        assert fleet.update().result == "installed"
    assert fleet.in_use == 3
    installed = fleet.installed
    assert installed.previous is not None
    assert (installed.previous.version, installed.newest, installed.is_confirmed) == (2, 3, True)
    assert len(list((fleet.settings.place / VERSIONS).iterdir())) == 2
    told = status(fleet.settings)
    assert told["newest"] == 3
    assert told["last_attempt"]["result"] == "installed"  # type: ignore[index]


def test_a_channel_is_followed_and_no_other(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.publish(2, channel="canary")
    fleet.update()
    assert fleet.in_use == 1
    fleet.with_settings(channel="canary").update()
    assert fleet.in_use == 2
    with pytest.raises(ReleaseError, match="rollback"):
        fleet.update()
    assert fleet.in_use == 2


def test_a_canary_that_fails_leaves_what_is_in_use_and_is_not_tried_again(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    fleet.publish(2, canary=CANARY)
    attempt = fleet.update(try_canary=lambda *_: "loss 12, at most 9")
    assert (attempt.result, attempt.version) == ("refused", 2)
    assert "loss 12" in attempt.told
    assert fleet.in_use == 1
    asked = len(fleet.server.asked)
    assert fleet.update(try_canary=pytest.fail).result == "unchanged"
    assert not [path for path in fleet.server.asked[asked:] if "safetensors" in path]
    fleet.publish(3, canary=CANARY)
    assert fleet.update().result == "installed"
    assert len(fleet.canaries) == 1
    assert fleet.in_use == 3


def test_a_server_that_dies_brings_back_what_was_before(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    fleet.publish(2)
    seen = []

    def dies(folder: Path, name: str, version: str, watch_s: float) -> str:
        seen.append((fleet.in_use, fleet.installed.is_confirmed, version[:2]))
        return "the server died"

    attempt = fleet.update(watch=dies)
    assert seen == [(2, False, "2-")]
    assert (attempt.result, fleet.in_use, fleet.installed.is_confirmed) == ("refused", 1, True)
    assert fleet.installed.newest == 2


def test_the_first_release_of_all_that_fails_leaves_none(fleet: Fleet) -> None:
    fleet.publish(1)
    assert fleet.update(watch=lambda *_: "died").result == "refused"
    assert fleet.in_use == 0


def test_a_trial_that_was_cut_off_is_begun_anew_from_the_version_before(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    fleet.publish(2)

    class Cut(BaseException):
        pass

    def cut(*_: object) -> str:
        raise Cut

    with pytest.raises(Cut):
        fleet.update(watch=cut)
    assert (fleet.in_use, fleet.installed.is_confirmed) == (2, False)
    seen = []

    def watched(*_: object) -> str:
        seen.append(fleet.installed.previous)
        return ""

    assert fleet.update(watch=watched).result == "installed"
    assert [each.version for each in seen if each] == [1]
    assert (fleet.in_use, fleet.installed.is_confirmed) == (2, True)


def test_a_canary_needs_graphs(fleet: Fleet) -> None:
    fleet.publish(1, canary=CANARY)
    with pytest.raises(ConfigError, match=r"update\.model"):
        fleet.with_settings(model="").update()
    assert fleet.in_use == 0


def test_two_updates_at_a_time_are_one(fleet: Fleet) -> None:
    fleet.publish(1)

    def again(*_: object) -> str:
        with pytest.raises(ReleaseError, match="another update"):
            fleet.update()
        return ""

    assert fleet.update(watch=again).result == "installed"


def test_another_base_another_name_and_a_key_that_is_not_trusted_are_refused(fleet: Fleet) -> None:
    fleet.publish(1)
    other = SigningKey.generate()
    other.public.write(fleet.folder / "other.pub")
    with pytest.raises(SignatureError, match="signed by"):
        fleet.with_settings(keys=(fleet.folder / "other.pub",)).update()
    with pytest.raises(ReleaseError, match="gives out no"):
        fleet.with_settings(name="other").update()
    with pytest.raises(ReleaseError, match="for the base"):
        fleet.with_settings(base="nano").update()
    assert not (fleet.settings.place / INSTALLED).exists()


def test_what_is_remembered_is_checked(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    path = fleet.settings.place / INSTALLED
    sound = path.read_text()
    for broken in ("", "{}", "[]", sound.replace('"newest": 1', '"newest": "x"'), sound.replace('"1-', '"../1-')):
        path.write_text(broken)
        with pytest.raises(ReleaseError, match="remove the folder"):
            fleet.update()
        assert path.read_text() == broken
    path.write_text(sound)
    assert fleet.update().result == "unchanged"


def test_what_is_remembered_is_read_back_equal(tmp_path: Path) -> None:
    version = InstalledVersion(version=2, digest="a" * 64, signer="b" * 64, folder="2-aaaa")
    installed = replace(
        read_installed(tmp_path), newest=2, current=version, refused={"c" * 64: "why"}, is_confirmed=False
    )
    write_installed(tmp_path, installed)
    assert read_installed(tmp_path) == installed


def test_a_failed_update_leaves_the_folder_but_for_what_is_told(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    before = {name: content for name, content in tree(fleet.settings.place).items() if name != "attempt.json"}
    fleet.publish(2, key=SigningKey.generate())
    with pytest.raises(FedloraError):
        fleet.update()
    after = {name: content for name, content in tree(fleet.settings.place).items() if name != "attempt.json"}
    assert {name for name in after if not name.startswith("tuf")} == {
        name for name in before if not name.startswith("tuf")
    }
    assert after[INSTALLED] == before[INSTALLED]


def test_a_folder_that_cannot_be_written_is_told(fleet: Fleet) -> None:
    fleet.publish(1)
    (fleet.folder / "file").touch()
    with pytest.raises(ConfigError, match="--folder"):
        fleet.with_settings(folder=fleet.folder / "file").update()
    assert os.path.lexists(fleet.folder / "file")
