"""A repository of The Update Framework (theupdateframework.github.io/specification), as plain files.

    metadata/N.root.json, N.targets.json, N.snapshot.json, timestamp.json     consistent snapshots
    targets/channels/..., targets/releases/...                                 each file named after its digest, too

A device sees the new state once timestamp.json is there, which is written last: whoever is cut off before that has changed
nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError, IdentityError, ReleaseError
from fedlora.files.atomic import whole_file, write_text
from fedlora.files.lock_file import hold
from fedlora.identity.keys import PublicKey
from fedlora.release.channels import METADATA, TARGETS, Channel, channel_target, difference_target, file_target
from fedlora.release.difference import difference
from fedlora.release.folder import read_plain_release
from fedlora.release.layout import ENVELOPE, WEIGHTS_PATH
from fedlora.release.manifest import ReleaseManifest
from fedlora.release.sealed import SignedRelease
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fedlora_server.distribution.newest import FIRST_ROOT, RENEWING, newest_metadata
from fedlora_server.distribution.role_keys import (
    NEXT,
    ROOT_ROLE,
    SNAPSHOT_ROLE,
    TARGETS_ROLE,
    TIMESTAMP_ROLE,
    Passphrase,
    has_passphrase,
    key_path,
    named_key,
    new_key,
    read_key,
    root_names,
    settle,
)

DAYS = {ROOT_ROLE: 365, TARGETS_ROLE: 180, SNAPSHOT_ROLE: 30, TIMESTAMP_ROLE: 7}  # that a role's word holds
_SPEC = "1.0.31"
_WORTH_IT = 0.95  # of the whole: a difference above that is not given out


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's folder, and the folder of its keys."""

    path: Path
    keys: Path
    passphrase: Passphrase | None = None  # of the offline keys, where they have one

    def init(
        self, *, root_keys: int = 3, threshold: int = 2, now: datetime | None = None, encrypt: bool = False
    ) -> Path:
        """Make the keys and the first metadata; returns the root file that devices pin.

        With `encrypt` the offline keys have the passphrase; the online ones sign with nobody there.
        Raises ConfigError where a repository is there, or the keys would be given out with it.
        """
        if not 1 <= threshold <= root_keys:
            raise ConfigError(f"--threshold {threshold}: expected 1 to the number of root keys, {root_keys}")
        if self.keys.absolute().is_relative_to(self.path.absolute()):
            raise ConfigError(
                f"--keys {self.keys}: within {self.path}, which is given out; name a folder outside of it"
            )
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path} is there and not empty; name another folder for the repository")
        moment, asked = _moment(now), self.passphrase() if encrypt and self.passphrase else None
        root = Root(1, _SPEC, moment + timedelta(days=DAYS[ROOT_ROLE]), consistent_snapshot=True)
        names = [f"{ROOT_ROLE}-{number}" for number in range(1, root_keys + 1)]
        signers = {name: new_key(key_path(self.keys, name), asked) for name in (*names, TARGETS_ROLE)}
        signers |= {name: new_key(key_path(self.keys, name)) for name in (SNAPSHOT_ROLE, TIMESTAMP_ROLE)}
        for name, signer in signers.items():
            root.add_key(signer.public_key, name.partition("-")[0])
        root.roles[ROOT_ROLE].threshold = threshold
        signed_root = Metadata(root)
        for name in names:
            signed_root.sign(signers[name], append=True)
        with self._held():
            first = self._write(signed_root, FIRST_ROOT)
            with whole_file(self.keys / FIRST_ROOT) as aside:  # from which every later one is followed
                aside.write_bytes(signed_root.to_bytes())
            self._commit(
                Targets(1, _SPEC, moment), Snapshot(1, _SPEC, moment), Timestamp(1, _SPEC, moment), root, moment, step=0
            )
        return first

    def publish(
        self, folder: Path, channel: Channel, trusted: Iterable[PublicKey], now: datetime | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> SignedRelease:  # fmt: skip
        """Give out a release that one of `trusted` signed; `tell` is told what could not be made of it.

        Raises ReleaseError where the channel has a newer one.
        """
        release = read_plain_release(folder, trusted)
        manifest, moment = release.manifest, _moment(now)
        if manifest.is_expired(moment):
            raise ReleaseError(
                f"{folder}: expired on {manifest.expires}; make the release again, with a higher version"
            )
        pointer = channel_target(channel, manifest.name)
        new = {file_target(manifest.name, manifest.version, path): folder / path for path in sorted(manifest.files)}
        new[pointer] = folder / ENVELOPE
        with self._held():
            newest = newest_metadata(self.path, self.keys)
            targets = newest.targets.signed
            files = {target: TargetFile.from_file(target, str(source), ["sha256"]) for target, source in new.items()}
            files[pointer].unrecognized_fields["custom"] = {"version": manifest.version}
            for target, file in files.items():
                before = targets.targets.get(target)
                if target == pointer and before is not None:
                    _check_newer(before, file, channel, manifest.name)
                elif before is not None and before.hashes != file.hashes:
                    raise ReleaseError(
                        f"{folder}: {target} has another content there; make the release again, with a higher version"
                    )
                self._put(file, new[target])
            targets.targets.update(files)
            targets.targets.update(self._differences(manifest, folder, targets, tell))
            self._commit(targets, newest.snapshot.signed, newest.timestamp.signed, newest.root.signed, moment)
        return release

    def _differences(
        self, manifest: ReleaseManifest, folder: Path, targets: Targets, tell: Callable[[str], None]
    ) -> dict[str, TargetFile]:
        """What a device with the parent needs in the adapter's place, where that is given out here and it is smaller."""
        if manifest.parent is None or WEIGHTS_PATH not in manifest.files:
            return {}
        name, before = manifest.name, manifest.parent.version
        parent = targets.targets.get(file_target(name, before, WEIGHTS_PATH))
        if parent is None or parent.length != manifest.files[WEIGHTS_PATH].size_bytes:
            return {}
        try:
            whole = self._place(parent).read_bytes()
            parent.verify_length_and_hashes(whole)
        except (OSError, LengthOrHashMismatchError) as error:
            why = error.strerror if isinstance(error, OSError) else "its content is not what was given out"
            tell(
                f"no difference to version {before} is given out, devices fetch the whole file: {self._place(parent)}: "
                f"{why}; copy it back, and the next release has one again"
            )
            return {}
        made = difference(whole, (folder / WEIGHTS_PATH).read_bytes())
        if made is None or len(made) >= _WORTH_IT * parent.length:
            return {}
        file = TargetFile.from_data(difference_target(name, manifest.version, before, WEIGHTS_PATH), made, ["sha256"])
        with whole_file(self._place(file)) as aside:
            aside.write_bytes(made)
        return {file.path: file}

    def refresh(self, now: datetime | None = None) -> Timestamp:
        """Sign anew that this is the newest, by the online keys alone. Raises ReleaseError where targets or root ended."""
        moment = _moment(now)
        with self._held():
            newest = newest_metadata(self.path, self.keys)
            for role, metadata in ((ROOT_ROLE, newest.root), (TARGETS_ROLE, newest.targets)):
                if metadata.signed.is_expired(moment):
                    raise ReleaseError(
                        f"{self.path}: {role} ended on {metadata.signed.expires:%Y-%m-%d}; renew it with the offline keys: "
                        f"fedlora publish renew {self.path}"
                    )
            snapshot, timestamp = newest.snapshot.signed, newest.timestamp.signed
            half = timedelta(days=DAYS[SNAPSHOT_ROLE]) / 2
            data = None
            if snapshot.expires - moment < half:
                snapshot.version += 1
                data = self._signed(snapshot, SNAPSHOT_ROLE, newest.root.signed, moment)
                self._write_bytes(data, f"{snapshot.version}.snapshot.json")
            timestamp.version += 1
            self._write_timestamp(timestamp, snapshot.version, data, newest.root.signed, moment)
        return timestamp

    def renew(self, replaced: Iterable[str] = (), now: datetime | None = None) -> int:
        """Sign root and targets anew with the offline keys, with new keys in the place of those named; the root's version.

        A new key lies aside until the root that names it is written: whatever fails before leaves the old one in its place.
        Raises IdentityError where fewer root keys are there than the root asks for, or one to replace is not there.
        """
        moment = _moment(now)
        with self._held():
            newest = newest_metadata(self.path, self.keys)
            root = newest.root.signed
            settle(self.keys, root, self.passphrase)
            names = root_names(self.keys)
            signers = [
                signer for signer in (read_key(key_path(self.keys, name), self.passphrase) for name in names)
                if signer.public_key.keyid in root.roles[ROOT_ROLE].keyids
            ]  # fmt: skip
            if len(signers) < (least := root.roles[ROOT_ROLE].threshold):
                raise IdentityError(f"{self.keys}: {len(signers)} of the root's keys; expected {least} at least")
            olds = {name: named_key(self.keys, name, root, self.passphrase) for name in dict.fromkeys(replaced)}
            for name, old in olds.items():
                role, new = name.partition("-")[0], self._next(name)
                root.revoke_key(old.public_key.keyid, role)
                root.add_key(new.public_key, role)
                signers.append(new)
            if not (self.keys / RENEWING).exists():
                write_text(self.keys / RENEWING, f"{root.version}\n")
            root.version += 1
            root.expires = moment + timedelta(days=DAYS[ROOT_ROLE])
            metadata = Metadata(root)
            for signer in signers:  # by the old keys, too: that is how devices follow
                metadata.sign(signer, append=True)
            self._write(metadata, f"{root.version}.root.json")
            settle(self.keys, root, self.passphrase)
            self._commit(newest.targets.signed, newest.snapshot.signed, newest.timestamp.signed, root, moment)
            (self.keys / RENEWING).unlink()
        return root.version

    def _next(self, name: str) -> CryptoSigner:
        """A new key, aside; under the passphrase where the one that it will replace has it."""
        path = key_path(self.keys, name)
        passphrase = self.passphrase() if self.passphrase and has_passphrase(path) else None
        return new_key(path.with_suffix(NEXT), passphrase)

    def _commit(
        self, targets: Targets, snapshot: Snapshot, timestamp: Timestamp, root: Root, now: datetime, *, step: int = 1
    ) -> None:
        targets.version += step
        data = self._signed(targets, TARGETS_ROLE, root, now)
        self._write_bytes(data, f"{targets.version}.targets.json")
        snapshot.meta["targets.json"] = MetaFile.from_data(targets.version, data, ["sha256"])
        snapshot.version += step
        data = self._signed(snapshot, SNAPSHOT_ROLE, root, now)
        self._write_bytes(data, f"{snapshot.version}.snapshot.json")
        timestamp.version += step
        self._write_timestamp(timestamp, snapshot.version, data, root, now)

    def _write_timestamp(
        self, timestamp: Timestamp, snapshot: int, data: bytes | None, root: Root, now: datetime
    ) -> None:
        if data is not None:
            timestamp.snapshot_meta = MetaFile.from_data(snapshot, data, ["sha256"])
        self._write_bytes(self._signed(timestamp, TIMESTAMP_ROLE, root, now), "timestamp.json")

    def _signed(self, signed: Targets | Snapshot | Timestamp, role: str, root: Root, now: datetime) -> bytes:
        signed.expires = now + timedelta(days=DAYS[role])
        metadata: Metadata[Any] = Metadata(signed)  # generic over one kind at a time
        metadata.sign(named_key(self.keys, role, root, self.passphrase))
        return metadata.to_bytes()

    def _write(self, metadata: Metadata[Root], name: str) -> Path:
        return self._write_bytes(metadata.to_bytes(), name)

    def _write_bytes(self, data: bytes, name: str) -> Path:
        path = self.path / METADATA / name
        with whole_file(path) as aside:
            aside.write_bytes(data)
        return path

    def _put(self, file: TargetFile, source: Path) -> None:
        """Copy a target under the name that has its digest in it, unless it is there."""
        target = self._place(file)
        if not target.is_file() or target.stat().st_size != file.length:
            with whole_file(target) as aside:
                shutil.copyfile(source, aside)

    def _place(self, file: TargetFile) -> Path:
        parent, _, name = file.path.rpartition("/")
        return self.path / TARGETS / parent / f"{file.hashes['sha256']}.{name}"

    @contextmanager
    def _held(self) -> Iterator[None]:
        """One at a time. Raises ConfigError where another process is at work here."""
        self.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            held = hold(self.keys / "lock")
        except BlockingIOError:
            raise ConfigError(f"{self.path}: another process publishes there; wait for its end") from None
        with held:
            yield


def _check_newer(before: TargetFile, now: TargetFile, channel: str, name: str) -> None:
    there, here = before.custom["version"], now.custom["version"]
    if here < there or (here == there and before.hashes != now.hashes):
        raise ReleaseError(
            f"{name}: {channel} gives out version {there} already, and this is {here}; make the release again, with a "
            "higher version"
        )


def _moment(now: datetime | None) -> datetime:
    return (now or datetime.now(UTC)).replace(microsecond=0)
