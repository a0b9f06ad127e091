"""The records of a run, as its server writes them: `core/fedlora/identity/records.py` says what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedlora.base.pack import file_digest
from fedlora.errors import IdentityError, RunError, SignatureError
from fedlora.files.atomic import whole_file
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.records import (
    ANSWERS,
    HEAD,
    KEYS,
    PUBLIC,
    RECORD,
    ROTATED,
    ROUNDS,
    Given,
    RoundEntry,
    RunHead,
    mark_of,
    read_record,
    read_sealed,
    sealed,
    signers,
)
from fedlora.identity.rotation import reached
from fedlora.identity.statement import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A server's key, and what vouches for it where it took another one's place."""

    key: SigningKey
    rotated: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one device gave, and, where it signed that, its answer and the key that verifies it."""

    given: Given
    answer: bytes = b""
    key: PublicKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The records of the run in a directory. Without a signer they are nobody's."""

    path: Path
    signer: Signer | None = None

    def record_of(self, server_round: int) -> str:
        """The digest of a round's record; "" for round 0, and for a round of an earlier version, which wrote none."""
        path = self._round(server_round) / RECORD
        return file_digest(path) if server_round and path.is_file() else ""

    def write(
        self, folder: Path, server_round: int, contributions: Sequence[Contribution], *, run: str, base: str, method: str,
        known: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Write the record of a round into its folder, whose other files are all there. Raises OSError or ConfigError.

        `known` are the digests of some of them.
        """
        self._keep_keys([each.key for each in contributions if each.key is not None])
        answers = [each.answer for each in contributions if each.answer]
        if answers:
            (folder / ANSWERS).write_bytes(b"".join(answer + b"\n" for answer in answers))
        entry = RoundEntry(
            run=run, round=server_round, base=base, method=method, at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            previous=self.record_of(server_round - 1),
            files={
                (name := path.relative_to(folder).as_posix()): mark_of(path, known.get(name))
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
            given=[each.given for each in contributions],
        )  # fmt: skip
        (folder / RECORD).write_bytes(sealed(entry, self._key))

    def write_head(self, run: str, last_round: int, names: Sequence[str]) -> None:
        """Write what stands at the end of the run, over those of the named files that are there."""
        there = [name for name in names if (self.path / name).is_file()]
        head = RunHead(
            run=run,
            round=last_round,
            record=self.record_of(last_round),
            files={name: mark_of(self.path / name) for name in there},
        )
        if not self._stands(head):
            with whole_file(self.path / HEAD) as aside:
                aside.write_bytes(sealed(head, self._key))

    def check_goes_on(self, last_round: int) -> None:
        """Raise RunError unless this server made the last record, if somebody signed it: what it signs next follows that.

        By the key that it has, or by one before, which vouches for it.
        """
        path = self._round(last_round) / RECORD
        if not (last_round and path.is_file()):
            return
        try:
            data = read_record(path)
            told = signers(data, RoundEntry, str(path))
            if not told:
                return
            if self.signer is None:
                raise SignatureError(f"{path}: signed by {told[0]:.16}; expected a run of a server without a key")
            key = PublicKey.read(self.path / KEYS / (told[0] + PUBLIC))
            if key.keyid != told[0] or self.signer.key.public not in reached(key, self.signer.rotated):
                raise SignatureError(
                    f"{path}: signed by {told[0]:.16}; expected this server's key, {self.signer.key.public.keyid:.16}"
                )
            read_sealed(RoundEntry, data, [key], str(path))
        except IdentityError as error:
            raise RunError(f"{error}; give the server the key of the run, or name another output") from None

    def _stands(self, head: RunHead) -> bool:
        """Whether the run's head says that already: a run that is complete is left as it is."""
        path = self.path / HEAD
        try:
            data = read_record(path)
            by = (self._key.public.keyid,) if self._key else ()
            return signers(data, RunHead, str(path)) == by and read_sealed(RunHead, data, None, str(path)) == head
        except IdentityError:
            return False

    @property
    def _key(self) -> SigningKey | None:
        return self.signer.key if self.signer else None

    def _round(self, server_round: int) -> Path:
        return self.path / ROUNDS / f"{server_round:04d}"

    def _keep_keys(self, keys: Sequence[PublicKey]) -> None:
        """Put public keys where whoever verifies the run finds them."""
        if self.signer is None:
            return
        folder = self.path / KEYS
        folder.mkdir(exist_ok=True)
        for key in (self.signer.key.public, *keys):
            if not (file := folder / (key.keyid + PUBLIC)).exists():
                key.write(file)
        for statement in self.signer.rotated:
            if not (file := folder / (digest(statement) + ROTATED)).exists():
                with whole_file(file) as aside:
                    aside.write_bytes(statement)
