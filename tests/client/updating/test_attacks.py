"""What a mirror, or who has stolen some keys, may try: it costs time, never the state.

Of the attacks that The Update Framework names, extraneous dependencies has no place here: a release depends on nothing but
the base that is on the device, by its fingerprint, and nothing is installed with it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, FedloraError, ReleaseError, SignatureError
from fedlora.files.tensor_file import TensorFile
from fedlora.identity.keys import SigningKey
from fedlora.release.folder import listed_files
from fedlora.release.installed import read_installed
from fedlora.release.layout import ENVELOPE
from fedlora.release.sealed import open_release, seal_release
from fedlora_server.distribution.newest import newest_metadata
from fedlora_server.distribution.repository import Repository
from fedlora_server.distribution.role_keys import key_path, new_key, read_key
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from tests.client.updating.conftest import KEY, Fleet, fleet_in
from tests.tiny.checkpoints import tree

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory, new_repository: Path, base: BasePack) -> Path:
    """The folder of a device with version 1 in use, and version 2 in the repository: to be copied."""
    folder = tmp_path_factory.mktemp("two-versions") / "fleet"
    shutil.copytree(new_repository, folder, symlinks=True)
    with fleet_in(folder, base) as fleet:
        fleet.publish(1)
        fleet.update()
        fleet.publish(2)
    return folder


@pytest.fixture
def device(tmp_path: Path, two_versions: Path, base: BasePack) -> Iterator[Fleet]:
    """Such a device of the test's own."""
    shutil.copytree(two_versions, tmp_path, symlinks=True, dirs_exist_ok=True)
    with fleet_in(tmp_path, base) as fleet:
        yield fleet


def unchanged(device: Fleet, told: str, kind: type[FedloraError] = ReleaseError) -> None:
    """The update is refused, and all that counts is as it was; once the mirror is sound again, it goes on."""
    before = device.installed
    with pytest.raises(kind, match=told):
        device.update()
    assert device.installed == before
    assert device.in_use == 1


def recovers(device: Fleet) -> None:
    device.server.instead = lambda request: False
    assert device.update().result == "installed"
    assert device.in_use == 2


def test_rollback_of_metadata(device: Fleet, tmp_path: Path) -> None:
    shutil.copytree(device.repository.path, tmp_path / "old")
    device.publish(3)
    device.update()
    shutil.rmtree(device.repository.path)
    (tmp_path / "old").rename(device.repository.path)
    with pytest.raises(ReleaseError, match="BadVersionNumberError"):
        device.update()
    assert device.in_use == 3


def test_rollback_of_a_release_by_who_holds_every_key_of_the_repository(device: Fleet) -> None:
    device.update()
    targets = newest_metadata(device.repository.path).targets.signed
    old = targets.targets["channels/stable/tone.json"]
    envelope = device.folder / "release-1-stable" / ENVELOPE
    file = TargetFile.from_file(old.path, str(envelope), ["sha256"])
    give(device, file, envelope)
    with pytest.raises(ReleaseError, match="a rollback is refused"):
        device.update()
    assert device.in_use == 2


def give(device: Fleet, file: TargetFile, source: Path) -> None:
    """Put a target into the repository, signed by its own keys, without what `fedlora publish` checks."""
    newest = newest_metadata(device.repository.path)
    newest.targets.signed.targets[file.path] = file
    device.repository._put(file, source)
    device.repository._commit(
        newest.targets.signed, newest.snapshot.signed, newest.timestamp.signed, newest.root.signed,
        datetime.now(UTC).replace(microsecond=0),
    )  # fmt: skip


def test_freeze(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.update()
    fleet.publish(2, now=datetime.now(UTC) - timedelta(days=8))
    unchanged(fleet, "ExpiredMetadataError")
    fleet.repository.refresh()
    recovers(fleet)


def test_mix_and_match(device: Fleet) -> None:
    metadata = device.repository.path / "metadata"
    number = newest_metadata(device.repository.path).snapshot.signed.version
    now = metadata / f"{number}.snapshot.json"
    sound = now.read_bytes()
    shutil.copyfile(metadata / f"{number - 1}.snapshot.json", now)
    unchanged(device, "LengthOrHashMismatchError|BadVersionNumberError")
    now.write_bytes(sound)
    recovers(device)


def endless(request: SimpleHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"0" * 65536)
    except OSError:
        return True


def dripping(request: SimpleHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.end_headers()
    return drip(request, b"0")


def dripping_head(request: SimpleHTTPRequestHandler) -> bool:
    request.wfile.write(b"HTTP/1.0 200 OK\r\n")
    return drip(request, b"X-More: 1\r\n")


def drip(request: SimpleHTTPRequestHandler, piece: bytes) -> bool:
    try:
        for _ in range(3000):
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(0.02)
    except OSError:
        pass
    return True


def silent(request: SimpleHTTPRequestHandler) -> bool:
    time.sleep(30)
    return True


def cut_off(request: SimpleHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"{")
    return True


def broken(request: SimpleHTTPRequestHandler) -> bool:
    request.send_error(500)
    return True


def nonsense(request: SimpleHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"\0[[[[")
    return True


@pytest.mark.parametrize("wrong", ["timestamp", "snapshot", "targets.json", "channels/", WEIGHTS, "root"])
@pytest.mark.parametrize("how", [endless, cut_off, broken, nonsense], ids=lambda how: how.__name__)
def test_a_mirror_that_lies_in_one_file(
    device: Fleet, wrong: str, how: Callable[[SimpleHTTPRequestHandler], bool]
) -> None:
    device.server.instead = lambda request: wrong in request.path and how(request)
    unchanged(device, "http:")
    recovers(device)


@pytest.mark.parametrize("wrong", ["timestamp", WEIGHTS])
@pytest.mark.parametrize("how", [dripping, dripping_head, silent], ids=lambda how: how.__name__)
def test_a_mirror_that_is_slow(device: Fleet, wrong: str, how: Callable[[SimpleHTTPRequestHandler], bool]) -> None:
    device.server.instead = lambda request: wrong in request.path and how(request)
    unchanged(device.with_settings(timeout_s=0.7), "too slow|exceeding|SlowRetrieval")
    recovers(device)


def test_an_address_that_nobody_answers(device: Fleet) -> None:
    device.server.server.socket.getsockname()
    unchanged(device.with_settings(url="http://127.0.0.1:1"), "cannot be fetched")


def test_another_s_repository(device: Fleet, tmp_path: Path) -> None:
    other = Repository(tmp_path / "other", tmp_path / "others-keys")
    other.init()
    shutil.rmtree(device.repository.path / "metadata")
    shutil.copytree(other.path / "metadata", device.repository.path / "metadata")
    unchanged(device, "UnsignedMetadataError|BadVersionNumberError")


def test_one_stolen_root_key_is_not_enough(device: Fleet, tmp_path: Path) -> None:
    """The thief names keys of his own in a new root, and signs it with the one that he has."""
    stolen = read_key(key_path(device.repository.keys, "root-1"))
    metadata: Metadata[Root] = newest_metadata(device.repository.path).root
    mine = new_key(tmp_path / "mine.pem")
    for role in ("root", "targets", "snapshot", "timestamp"):
        for keyid in list(metadata.signed.roles[role].keyids):
            metadata.signed.revoke_key(keyid, role)
        metadata.signed.add_key(mine.public_key, role)
    metadata.signed.roles["root"].threshold = 1
    metadata.signed.version = 2
    metadata.sign(stolen)
    metadata.sign(mine, append=True)
    metadata.to_file(str(device.repository.path / "metadata" / "2.root.json"))
    unchanged(device, "UnsignedMetadataError")
    (device.repository.path / "metadata" / "2.root.json").unlink()
    recovers(device)


def test_the_online_keys_alone_give_out_nothing(device: Fleet, tmp_path: Path) -> None:
    """Who has snapshot and timestamp signs targets of his own with another key."""
    newest = newest_metadata(device.repository.path)
    mine = new_key(tmp_path / "mine.pem")
    targets: Metadata[Targets] = newest.targets
    targets.signed.version += 1
    targets.sign(mine)
    data = targets.to_bytes()
    folder = device.repository.path / "metadata"
    (folder / f"{targets.signed.version}.targets.json").write_bytes(data)
    snapshot: Metadata[Snapshot] = newest.snapshot
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(targets.signed.version, data, ["sha256"])
    snapshot.signed.version += 1
    snapshot.sign(read_key(key_path(device.repository.keys, "snapshot")))
    data = snapshot.to_bytes()
    (folder / f"{snapshot.signed.version}.snapshot.json").write_bytes(data)
    timestamp: Metadata[Timestamp] = newest.timestamp
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    timestamp.signed.version += 1
    timestamp.sign(read_key(key_path(device.repository.keys, "timestamp")))
    timestamp.to_file(str(folder / "timestamp.json"))
    unchanged(device, "UnsignedMetadataError")


def test_every_key_of_the_repository_without_the_release_key_gives_out_nothing(device: Fleet) -> None:
    device.publish(3, key=SigningKey.generate())
    unchanged(device, "signed by", SignatureError)


def test_an_adapter_that_was_exchanged_on_the_mirror(device: Fleet) -> None:
    [mine] = (device.repository.path / "targets" / "releases" / "tone" / "2" / "adapter").glob(f"*.{WEIGHTS}")
    content = bytearray(mine.read_bytes())
    content[-1] ^= 1
    mine.write_bytes(content)
    unchanged(device, "LengthOrHashMismatchError")


def test_an_adapter_that_was_exchanged_by_who_holds_every_key_of_the_repository(device: Fleet) -> None:
    other = device.folder / "release-1-stable" / "adapter" / WEIGHTS
    give(device, TargetFile.from_file(f"releases/tone/2/adapter/{WEIGHTS}", str(other), ["sha256"]), other)
    unchanged(device, "tell of two files")


def test_a_version_that_becomes_another_content(device: Fleet) -> None:
    device.update()
    folder = device.folder / "release-2-stable"
    release = open_release((folder / ENVELOPE).read_bytes(), [KEY.public], "x")
    (device.folder / "again").write_bytes(seal_release(replace(release.manifest, evaluation={"mean": 1.0}), KEY))
    give(
        device, TargetFile.from_file("channels/stable/tone.json", str(device.folder / "again"), ["sha256"]),
        device.folder / "again",
    )  # fmt: skip
    with pytest.raises(ReleaseError, match="another one of this version"):
        device.update()
    assert device.in_use == 2


def signed_anew(device: Fleet, version: int, change: Callable[[Path], None]) -> None:
    """Give out a release whose maker signed something that is not sound."""
    made = device.publish(version)
    release = open_release((made / ENVELOPE).read_bytes(), [KEY.public], "x")
    change(made / "adapter")
    manifest = replace(release.manifest, version=version + 1, files=listed_files(made))
    (made / ENVELOPE).write_bytes(seal_release(manifest, KEY))
    device.repository.publish(made, "stable", [KEY.public])


def not_finite(folder: Path) -> None:
    path = folder / WEIGHTS
    file = TensorFile(path)
    entry = next(iter(file.entries))
    content = bytearray(path.read_bytes())
    place = content.index(np.ascontiguousarray(file.float32(entry)).tobytes()[:16])
    content[place : place + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)


def of_other_values(folder: Path) -> None:
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(0.5).tobytes()
    path.write_bytes(content)


def no_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [(not_finite, AdapterError, "NaN|finite"), (of_other_values, ReleaseError, "digest of its values"),
     (no_adapter, AdapterError, "DoRA")],
    ids=["nan", "other values", "dora"],
)  # fmt: skip
def test_what_is_signed_and_not_sound_is_refused(
    device: Fleet, change: Callable[[Path], None], kind: type[FedloraError], told: str
) -> None:
    signed_anew(device, 3, change)
    unchanged(device, told, kind)


def test_nothing_of_a_refused_release_stays(device: Fleet) -> None:
    signed_anew(device, 3, not_finite)
    before = {name for name in tree(device.settings.place) if name.startswith("versions")}
    unchanged(device, "NaN|finite", AdapterError)
    assert {name for name in tree(device.settings.place) if name.startswith("versions")} == before
    assert not [name for name in tree(device.settings.place) if ".temp-" in name or ".release" in name]
    assert read_installed(device.settings.place).newest == 1
