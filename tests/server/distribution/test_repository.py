"""What fedlora publishes, read by The Update Framework's own client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.errors import ConfigError, FedloraError, IdentityError, ReleaseError, SignatureError
from fedlora.files.at_rest import wrap
from fedlora.files.lock_file import hold
from fedlora.identity.keys import SigningKey
from fedlora.release.channels import Channel
from fedlora.release.folder import read_release
from fedlora_server.distribution.hub_repository import HubRepository
from fedlora_server.distribution.oci_registry import Registry
from fedlora_server.distribution.repository import DAYS, Repository
from fedlora_server.distribution.role_keys import has_passphrase, key_path, new_key, read_key
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import ExpiredMetadataError
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater

from tests.tiny.releases import NOW, write_release
from tests.tiny.static_server import given_out

KEY = SigningKey.generate()
WEIGHTS = "adapter/adapter_model.safetensors"
DAY = timedelta(days=1)
FAR: dict[str, Any] = {"issued": "2020-01-01T00:00:00Z", "expires": "2099-01-01T00:00:00Z"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repo", tmp_path / "keys")
    made.init(now=NOW)
    return made


def updater(repository: Repository, folder: Path, url: str) -> Updater:
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    return Updater(
        str(folder), f"{url}/metadata/", str(folder / "targets"), f"{url}/targets/",
        bootstrap=(repository.path / "metadata" / "1.root.json").read_bytes(),
    )  # fmt: skip


def at(client: Updater, moment: object) -> Updater:
    client._trusted_set.reference_time = moment  # type: ignore[assignment]
    return client


def test_a_release_is_fetched_by_the_framework_s_own_client(
    repository: Repository, base: BasePack, tmp_path: Path
) -> None:
    write_release(tmp_path / "r", base, KEY)
    repository.publish(tmp_path / "r", "stable", [KEY.public], NOW)
    with given_out(repository.path) as server:
        client = at(updater(repository, tmp_path / "client", server.url), NOW)
        client.refresh()
        for target, file in (("channels/stable/tone.json", "release.json"), (f"releases/tone/3/{WEIGHTS}", WEIGHTS)):
            info = client.get_targetinfo(target)
            assert info is not None
            assert Path(client.download_target(info)).read_bytes() == (tmp_path / "r" / file).read_bytes()
        assert client.get_targetinfo("channels/canary/tone.json") is None


def test_keys_are_apart_private_and_not_given_out(repository: Repository) -> None:
    found = {
        path.relative_to(repository.keys).as_posix(): path.stat().st_mode & 0o777
        for path in repository.keys.rglob("*.pem")
    }
    assert found == dict.fromkeys(
        ["offline/root-1.pem", "offline/root-2.pem", "offline/root-3.pem", "offline/targets.pem", "online/snapshot.pem",
         "online/timestamp.pem"], 0o600,
    )  # fmt: skip
    root = json.loads((repository.path / "metadata" / "1.root.json").read_text())["signed"]
    assert root["roles"]["root"]["threshold"] == 2
    assert root["consistent_snapshot"] is True
    assert not list(repository.path.rglob("*.pem"))
    with pytest.raises(ConfigError, match="given out"):
        Repository(repository.path.parent / "x", repository.path.parent / "x" / "keys").init()
    with pytest.raises(ConfigError, match="not empty"):
        repository.init()
    with pytest.raises(ConfigError, match="--threshold"):
        Repository(repository.path.parent / "y", repository.path.parent / "z").init(root_keys=1)


def test_refreshing_needs_no_offline_key_and_holds_for_a_week(repository: Repository, tmp_path: Path) -> None:
    (repository.keys / "offline").rename(tmp_path / "away")
    repository.refresh(NOW + 6 * DAY)
    with given_out(repository.path) as server:
        at(updater(repository, tmp_path / "a", server.url), NOW + 12 * DAY).refresh()
        with pytest.raises(ExpiredMetadataError):
            at(updater(repository, tmp_path / "b", server.url), NOW + 14 * DAY).refresh()
    with pytest.raises(IdentityError, match=r"targets\.pem: cannot be read"):
        repository.publish(*released(tmp_path), [KEY.public], NOW)


def released(tmp_path: Path) -> tuple[Path, Channel]:
    from tests.tiny.llamas import DEFAULT, llama_pack

    write_release(tmp_path / "r", llama_pack(DEFAULT), KEY)
    return tmp_path / "r", "stable"


def test_the_snapshot_is_renewed_in_time_and_the_root_is_asked_for(repository: Repository, tmp_path: Path) -> None:
    moment = NOW
    for _ in range(17):
        moment += 10 * DAY
        repository.refresh(moment)
        with given_out(repository.path) as server:
            at(updater(repository, tmp_path / f"{moment:%j}", server.url), moment + 6 * DAY).refresh()
    with pytest.raises(ReleaseError, match=r"targets ended .* fedlora publish renew"):
        repository.refresh(NOW + (DAYS["targets"] + 1) * DAY)


def test_a_device_follows_a_root_whose_keys_were_replaced(repository: Repository, tmp_path: Path) -> None:
    with given_out(repository.path) as server:
        at(updater(repository, tmp_path / "client", server.url), NOW).refresh()
        assert repository.renew(["root-1", "targets", "timestamp"], NOW + DAY) == 2
        assert repository.renew(["root-2"], NOW + 2 * DAY) == 3
        client = at(updater(repository, tmp_path / "client", server.url), NOW + 3 * DAY)
        client.refresh()
        assert client._trusted_set.root.version == 3


def test_a_replacement_that_fails_leaves_every_key_in_its_place(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {path: path.read_bytes() for path in sorted(repository.keys.glob("*/*"))}
    with pytest.raises(IdentityError, match=r"root-9\.pem: cannot be read"):
        repository.renew(["targets", "root-9"], NOW)
    with monkeypatch.context() as patched:
        patched.setattr(Repository, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            repository.renew(["targets", "root-1"], NOW)
    assert {path: path.read_bytes() for path in sorted(repository.keys.glob("*/*.pem"))} == keys
    repository.refresh(NOW)
    assert repository.renew(["targets", "root-1"], NOW) == 2
    assert not list(repository.keys.glob("*/*.next"))


def test_a_replacement_that_was_cut_off_after_the_root_is_gone_on_with(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = key_path(repository.keys, "targets").read_bytes()
    with monkeypatch.context() as patched:
        done = Repository._write

        def cut_off(self: Repository, *given: Any) -> None:
            done(self, *given)
            raise KeyboardInterrupt

        patched.setattr(Repository, "_write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            repository.renew(["targets"], NOW)
    assert repository.renew((), NOW) == 3
    assert key_path(repository.keys, "targets").with_suffix(".replaced").read_bytes() == old
    with given_out(repository.path) as server:
        at(updater(repository, tmp_path / "client", server.url), NOW).refresh()


def test_another_key_in_the_place_of_one_to_replace_is_refused_and_stays(
    repository: Repository, tmp_path: Path
) -> None:
    Repository(tmp_path / "other", tmp_path / "others-keys").init()
    path = key_path(repository.keys, "targets")
    path.write_bytes(other := key_path(tmp_path / "others-keys", "targets").read_bytes())
    with pytest.raises(IdentityError, match="not the key that the root names for targets"):
        repository.renew(["targets"], NOW)
    assert path.read_bytes() == other and not path.with_suffix(".replaced").exists()


def test_one_root_key_is_not_enough(repository: Repository) -> None:
    for name in ("root-2", "root-3"):
        key_path(repository.keys, name).unlink()
    with pytest.raises(IdentityError, match="1 of the root's keys; expected 2"):
        repository.renew()


def test_another_repository_s_keys_are_refused(repository: Repository, tmp_path: Path) -> None:
    Repository(tmp_path / "other", tmp_path / "others-keys").init()
    with pytest.raises(
        IdentityError, match=r"not the first root that .* holds the keys of; name this repository's own"
    ):
        Repository(repository.path, tmp_path / "others-keys").refresh(NOW)


def test_versions_of_a_channel_only_grow(repository: Repository, base: BasePack, tmp_path: Path) -> None:
    for version, seed in ((3, 1), (4, 2)):
        write_release(tmp_path / str(version), base, KEY, seed=seed, version=version)
    write_release(tmp_path / "other-4", base, KEY, seed=3, version=4)
    repository.publish(tmp_path / "4", "canary", [KEY.public], NOW)
    repository.publish(tmp_path / "4", "canary", [KEY.public], NOW)  # once more changes nothing
    repository.publish(tmp_path / "3", "stable", [KEY.public], NOW)
    for folder, channel in (("3", "canary"), ("other-4", "canary"), ("other-4", "stable")):
        with pytest.raises(ReleaseError, match="higher version"):
            repository.publish(tmp_path / folder, channel, [KEY.public], NOW)  # type: ignore[arg-type]
    repository.publish(tmp_path / "4", "stable", [KEY.public], NOW)  # what was tried in one goes into the other


def test_what_is_not_sound_is_not_published(repository: Repository, base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY)
    before = sorted(path.name for path in repository.path.rglob("*"))
    with pytest.raises(SignatureError):
        repository.publish(tmp_path / "r", "stable", [SigningKey.generate().public], NOW)
    with pytest.raises(ReleaseError, match="expired"):
        repository.publish(tmp_path / "r", "stable", [KEY.public], NOW + 400 * DAY)
    (tmp_path / "r" / WEIGHTS).write_bytes(b"x")
    with pytest.raises(ReleaseError, match="not what was signed"):
        repository.publish(tmp_path / "r", "stable", [KEY.public], NOW)
    assert sorted(path.name for path in repository.path.rglob("*")) == before


def test_what_is_encrypted_at_rest_is_given_out_nowhere(
    repository: Repository, base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(tmp_path / "r", base, KEY)
    monkeypatch.setenv("REST", "ab" * 32)
    monkeypatch.setenv("FEDLORA_AT_REST_KEY", "env:REST")
    wrap(tmp_path / "r" / WEIGHTS)
    read_release(tmp_path / "r", [KEY.public])  # which a device that has the key may
    places: tuple[Callable[[], object], ...] = (
        lambda: repository.publish(tmp_path / "r", "stable", [KEY.public], NOW),
        lambda: Registry("127.0.0.1:9/tone", plain=True).publish(tmp_path / "r", [KEY.public]),
        lambda: HubRepository("me/tone").publish(tmp_path / "r", [KEY.public]),
    )
    for published in places:
        with pytest.raises(ReleaseError, match=r"adapter_model\.safetensors: encrypted at rest, and nobody else"):
            published()


@pytest.mark.parametrize("spoil", ["", "{", '{"signed": {}}', "[]"])
def test_a_folder_that_is_no_repository_is_told(repository: Repository, spoil: str) -> None:
    (repository.path / "metadata" / "timestamp.json").write_text(spoil)
    with pytest.raises(ReleaseError, match="timestamp"):
        repository.refresh(NOW)


def test_a_crash_before_the_timestamp_changes_nothing_for_devices(
    repository: Repository, base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(tmp_path / "r", base, KEY)

    def cut(*arguments: object) -> None:
        raise OSError("the power is cut")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(Repository, "_write_timestamp", cut)
        repository.publish(tmp_path / "r", "stable", [KEY.public], NOW)
    with given_out(repository.path) as server:
        client = at(updater(repository, tmp_path / "a", server.url), NOW)
        assert client.get_targetinfo("channels/stable/tone.json") is None
        repository.publish(tmp_path / "r", "stable", [KEY.public], NOW)
        assert at(updater(repository, tmp_path / "b", server.url), NOW).get_targetinfo("channels/stable/tone.json")


def test_the_commands(base: BasePack, tmp_path: Path) -> None:
    write_release(tmp_path / "r", base, KEY, expires="2099-01-01T00:00:00Z")
    KEY.public.write(tmp_path / "release.pub")

    def publish(*arguments: str) -> str:
        return CliRunner().invoke(commands, ["publish", *arguments], catch_exceptions=False).output

    repo = str(tmp_path / "repo")
    assert "fedlora update init" in publish("init", repo)
    told = publish(str(tmp_path / "r"), "--repo", repo, "--channel", "canary", "--trust", str(tmp_path / "release.pub"))
    assert told == f"tone 3 is in canary of {repo}\n"
    assert "holds until" in publish("refresh", repo)
    assert "root 2" in publish("renew", repo, "--replace", "root-1")
    assert "RELEASE --repo REPO" in publish("--help")
    with pytest.raises(FedloraError):
        publish("refresh", str(tmp_path / "r"))


def test_offline_keys_under_a_passphrase_sign_with_it_alone_and_online_ones_without(
    base: BasePack, tmp_path: Path
) -> None:
    run, secret = CliRunner(), tmp_path / "passphrase"
    secret.write_text("a long one\n")
    secret.chmod(0o600)
    with_it = ["--passphrase-file", str(secret)]
    repo, keys = tmp_path / "repo", tmp_path / "repo-keys"
    assert run.invoke(commands, ["publish", "init", str(repo), *with_it], catch_exceptions=False).exit_code == 0
    kinds = {path.stem: b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes() for path in keys.glob("*/*.pem")}
    assert {name for name, is_encrypted in kinds.items() if is_encrypted} == {"root-1", "root-2", "root-3", "targets"}
    assert set(kinds) > {"snapshot", "timestamp"}
    info = ["openssl", "pkey", "-in", str(keys / "offline/targets.pem"), "-passin", f"file:{secret}", "-noout", "-text"]
    assert "ED25519" in subprocess.run(info, capture_output=True, text=True, check=True, timeout=60).stdout
    assert run.invoke(commands, ["publish", "refresh", str(repo)], catch_exceptions=False).exit_code == 0
    write_release(tmp_path / "r", base, KEY, **FAR)
    KEY.public.write(tmp_path / "k.pub")
    publish = ["publish", str(tmp_path / "r"), "--repo", str(repo), "--trust", str(tmp_path / "k.pub")]
    before = (repo / "metadata/timestamp.json").read_bytes()
    wrong = run.invoke(commands, publish, input="another\n")
    assert isinstance(wrong.exception, IdentityError) and "its passphrase is another one" in str(wrong.exception)
    assert (repo / "metadata/timestamp.json").read_bytes() == before
    told = run.invoke(commands, publish, input="a long one\n", catch_exceptions=False).output
    assert told.count("Passphrase of the keys in") == 1 and "is in stable" in told
    renew = ["publish", "renew", str(repo), "--replace", "root-1", "--replace", "timestamp", *with_it]
    assert run.invoke(commands, renew, catch_exceptions=False).exit_code == 0
    assert has_passphrase(keys / "offline/root-1.pem") and not has_passphrase(keys / "online/timestamp.pem")
    with pytest.raises(IdentityError, match="it has a passphrase, and none was given"):
        Repository(repo, keys).renew()


def test_one_process_at_a_time_publishes(repository: Repository) -> None:
    with hold(repository.keys / "lock"), pytest.raises(ConfigError, match="another process publishes there"):
        repository.refresh(now=NOW)
    repository.refresh(now=NOW)


def changed(path: Path, change: Callable[[Any], None], signers: Sequence[CryptoSigner] = ()) -> None:
    """Metadata changed by who may write into the folder that is given out, signed with keys of his own."""
    metadata: Metadata[Any] = Metadata.from_file(str(path))
    change(metadata.signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    metadata.to_file(str(path))


def names_keys_of_his_own(root: Root, mine: CryptoSigner) -> None:
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(mine.public_key, role)
    root.roles["root"].threshold, root.version = 1, 2


@pytest.mark.parametrize("what", ["targets", "snapshot", "timestamp", "a new root", "the first root", "an older state"])
def test_what_somebody_else_wrote_into_the_folder_is_not_signed(
    repository: Repository, base: BasePack, tmp_path: Path, what: str
) -> None:
    write_release(tmp_path / "r", base, KEY)
    repository.publish(tmp_path / "r", "stable", [KEY.public], NOW)
    folder, mine = repository.path / "metadata", new_key(tmp_path / "mine.pem")
    match what:
        case "a new root":
            (folder / "2.root.json").write_bytes((folder / "1.root.json").read_bytes())
            stolen = read_key(key_path(repository.keys, "root-1"))
            changed(folder / "2.root.json", lambda root: names_keys_of_his_own(root, mine), [stolen, mine])
        case "the first root":
            changed(folder / "1.root.json", lambda root: root.add_key(mine.public_key, "root"), [mine])
        case "an older state":
            (folder / "2.snapshot.json").write_bytes((folder / "1.snapshot.json").read_bytes())
        case _:
            name = next(path.name for path in sorted(folder.glob(f"*{what}.json"), reverse=True))
            changed(folder / name, lambda signed: signed.unrecognized_fields.update(mine="x"), [mine])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    again: tuple[Callable[[], object], ...] = (
        lambda: repository.publish(tmp_path / "r", "canary", [KEY.public], NOW),
        lambda: repository.refresh(NOW),
        lambda: repository.renew((), NOW),
    )
    for signs in again:
        with pytest.raises((ReleaseError, IdentityError), match="copy the repository again"):
            signs()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_repository_of_an_earlier_version_is_followed_from_its_own_first_root(repository: Repository) -> None:
    (repository.keys / "1.root.json").unlink()
    assert repository.renew(["targets", "root-1"], NOW) == 2
    repository.refresh(NOW)


def test_metadata_without_an_end_are_not_read(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora_server.distribution.newest.MAX_BYTES", 100)
    with pytest.raises(ReleaseError, match="cannot be read"):
        repository.refresh(NOW)
