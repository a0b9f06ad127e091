"""A run held against its records: every file is as it was committed, and every record follows the one before.

What is found depends on who is asked. Without a key of one's own it is only that the run is of one piece, and which keys
signed it. With the server's, that the server did. And what devices signed holds against the server itself: each answer
names the record that the device was shown, so a round before it cannot be written anew without the device's key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlora.counted import counted
from fedlora.errors import IdentityError, SignatureError
from fedlora.files.bounded import read_bounded
from fedlora.identity.keys import MAX_BYTES as MAX_KEY_BYTES
from fedlora.identity.keys import PublicKey
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
    is_marked,
    read_record,
    read_sealed,
    signers,
)  # fmt: skip
from fedlora.identity.rotation import MAX_BYTES as MAX_ROTATED_BYTES
from fedlora.identity.rotation import reached
from fedlora.identity.statement import ANSWER, digest, read_signed

_CHANGED = "it was changed after it was recorded; take the run from a copy"


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / "run.json").is_file() and (folder / ROUNDS).is_dir()


def audited(run: Path, trusted: PublicKey | None = None) -> Iterator[str]:
    """A line for each round and each device's part of it, once it is verified.

    `trusted` is the key that the run began under, or any later one that it vouches for. Raises IdentityError, naming the
    file, at the first thing that is not as it was recorded.
    """
    yield from _Audit(run, trusted).lines()


@dataclass
class _Audit:
    run: Path
    trusted: PublicKey | None
    keys: dict[str, PublicKey] = field(default_factory=dict)
    rotated: list[bytes] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)  # of the records, by round
    signer: PublicKey | None = None  # of the last record

    def lines(self) -> Iterator[str]:
        self._read_keys()
        head_data = read_record(self.run / HEAD) if (self.run / HEAD).exists() else None
        rounds = self._rounds()
        recorded = [number for number in rounds if (self.run / ROUNDS / f"{number:04d}" / RECORD).exists()]
        if not recorded and head_data is None:
            raise IdentityError(f"{self.run}: it has no records; expected a run of a fedlora that writes them")
        if recorded != rounds[len(rounds) - len(recorded) :]:
            missing = next(number for number in rounds if number not in recorded and number > recorded[0])
            raise IdentityError(f"{self.run / ROUNDS / f'{missing:04d}'}: it has no {RECORD}; {_CHANGED}")
        if len(recorded) < len(rounds):
            yield f"rounds 1 to {len(rounds) - len(recorded)}: of an earlier version of fedlora, which kept no records"
        before: RoundEntry | None = None
        for number in recorded:
            before = self._round(number, before)
            signed = f"signed by {self.signer.keyid[:16]}" if self.signer else "not signed"
            yield f"round {number}: record {self.digests[number][:16]}, {signed}, {before.at}, method {before.method}"
            for given in before.given:
                whose = f"key {given.key[:16]}" if given.key else "not signed"
                yield f"  {given.device} ({whose}): update {given.update[:16]}, {counted(given.examples, 'example')}"
        yield from self._head(head_data, before)

    def _read_keys(self) -> None:
        folder = self.run / KEYS
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.endswith(PUBLIC):
                key = PublicKey.read(path)
                if path.name != key.keyid + PUBLIC or read_bounded(path, MAX_KEY_BYTES) != key.to_pem().encode():
                    raise IdentityError(f"{path}: not the key of that id as it was written; {_CHANGED}")
                self.keys[key.keyid] = key
            elif path.name.endswith(ROTATED):
                content = read_bounded(path, MAX_ROTATED_BYTES)
                if path.name != digest(content) + ROTATED:
                    raise IdentityError(f"{path}: not the statement of that digest; {_CHANGED}")
                self.rotated.append(content)
            else:
                raise IdentityError(f"{path}: not a key of the run; expected ID{PUBLIC} and DIGEST{ROTATED} only")

    def _rounds(self) -> list[int]:
        """The committed rounds, which are 1, 2, 3 and so on. Raises IdentityError where one is missing."""
        names = sorted(path.name for path in (self.run / ROUNDS).iterdir() if not path.name.startswith("."))
        expected = [f"{number:04d}" for number in range(1, len(names) + 1)]
        if sorted(expected) != names:
            wrong = next(iter(sorted({*names} ^ {*expected})))
            raise IdentityError(f"{self.run / ROUNDS}: {wrong} is missing or is no round; expected 1 to {len(names)}")
        return list(range(1, len(names) + 1))

    def _signer_of(self, data: bytes, kind: type[RoundEntry | RunHead], where: str) -> PublicKey | None:
        """The key that must have signed a record; None where none has, and none need have.

        The first is the trusted one or one that it vouches for; after that, the one before or one that that vouches for. A
        server that was given a key in the middle of a run signs for what was before. Raises SignatureError.
        """
        found = signers(data, kind, where)
        if not found:
            if (due := self.signer or (self.trusted if kind is RunHead else None)) is not None:
                raise SignatureError(f"{where}: nobody signed it; expected {due.keyid[:16]}")
            return None
        key = self.keys.get(found[0])
        if len(found) > 1 or key is None:
            raise SignatureError(f"{where}: signed by {', '.join(found)[:80]}; expected one key of {self.run / KEYS}")
        anchor = self.signer or self.trusted
        if anchor is not None and key not in reached(anchor, self.rotated):
            raise SignatureError(
                f"{where}: signed by {key.keyid[:16]}; expected {anchor.keyid[:16]}, or a key that it signed"
            )
        return key

    def _round(self, number: int, before: RoundEntry | None) -> RoundEntry:
        folder = self.run / ROUNDS / f"{number:04d}"
        where = str(folder / RECORD)
        data = read_record(folder / RECORD)
        key = self._signer_of(data, RoundEntry, where)
        entry = read_sealed(RoundEntry, data, None if key is None else [key], where)
        previous = self.digests.get(number - 1, "")
        for name, got, expected in (
            ("round", entry.round, number), ("previous", entry.previous, previous),
            ("run", entry.run, before.run if before else entry.run),
            ("base", entry.base, before.base if before else entry.base),
        ):  # fmt: skip
            if got != expected:
                raise IdentityError(f"{where}: {name} is {got!r:.80}; expected {expected!r:.80}: {_CHANGED}")
        _check_files(folder, entry.files, RECORD)
        self.digests[number], self.signer = digest(data), key
        self._answers(folder, entry, key)
        return entry

    def _answers(self, folder: Path, entry: RoundEntry, server: PublicKey | None) -> None:
        """What the devices signed is what the record says that they gave."""
        signed = [given for given in entry.given if given.key]
        lines = read_record(folder / ANSWERS).splitlines() if ANSWERS in entry.files else []
        if len(lines) != len(signed):
            raise IdentityError(
                f"{folder / ANSWERS}: {counted(len(lines), 'answer')}; expected {len(signed)}, as {RECORD} has them"
            )
        for given, line in zip(signed, lines, strict=True):
            self._answer(f"{folder / ANSWERS}: {given.device}", entry, given, line, server)

    def _answer(self, where: str, entry: RoundEntry, given: Given, line: bytes, server: PublicKey | None) -> None:
        if given.key not in self.keys:
            raise IdentityError(f"{where}: key {given.key[:16]} is not in {self.run / KEYS}; {_CHANGED}")
        said = read_signed(line, ANSWER, [self.keys[given.key]], where).statement
        expected = {
            "kind": "train", "run": entry.run, "base": entry.base, "payload": given.update,
            "head": self.digests.get(said.head_round, ""),
        }  # fmt: skip
        for name, value in expected.items():
            if (got := getattr(said, name)) != value:
                raise IdentityError(f"{where}: it signed {name} {got!r:.80}; the run has {value!r:.80}: {_CHANGED}")
        if not said.head_round < said.round <= entry.round or said.head_round != said.round - 1:
            raise IdentityError(f"{where}: it answered round {said.round}; expected one up to {entry.round}")
        if server is not None and said.receiver != server.keyid and said.receiver not in self.keys:
            raise IdentityError(f"{where}: it answered key {said.receiver[:16]}; expected one of {self.run / KEYS}")

    def _head(self, data: bytes | None, last: RoundEntry | None) -> Iterator[str]:
        where = str(self.run / HEAD)
        if data is None:
            raise IdentityError(f"{where} is missing, and records are there; {_CHANGED}")
        key = self._signer_of(data, RunHead, where)
        head = read_sealed(RunHead, data, None if key is None else [key], where)
        if last is not None and head.run != last.run:
            raise IdentityError(f"{where}: run is {head.run!r:.80}; expected {last.run!r:.80}: {_CHANGED}")
        if head.round > len(self._rounds()) or head.record != self.digests.get(head.round, ""):
            raise IdentityError(
                f"{where}: round {head.round}, record {head.record[:16]}, was the last; it is no longer there: {_CHANGED}"
            )
        for name, expected in head.files.items():
            if not is_marked(self.run / name, expected):
                raise IdentityError(
                    f"{self.run / name}: not as it was signed: it was changed, or the server was stopped while it wrote; "
                    "go on with the run, or take it from a copy"
                )
        covered = {*head.files, HEAD, KEYS, ROUNDS}
        others = sorted(path.name for path in self.run.iterdir() if path.name not in covered)
        whose = f"signed by {key.keyid}" if key else "not signed: the records show changes, not who made the run"
        yield f"run {head.run}: {counted(len(self.digests), 'record')} of one chain, {whose}"
        if key and self.trusted is None:
            yield "whose key that is, this does not say: compare it with the server's (fedlora key show), or give --key"
        if others:
            yield f"not covered by any record: {', '.join(others)}"


def _check_files(folder: Path, recorded: Mapping[str, str], but: str) -> None:
    """Raise IdentityError unless a folder has these files and no others, to the bit."""
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if _is_entry(path)}
    there.pop(but, None)
    for name in sorted({*there, *recorded}):
        if name not in there:
            raise IdentityError(f"{folder / name} is missing; {_CHANGED}")
        if name not in recorded:
            raise IdentityError(f"{folder / name} is in no record; {_CHANGED}")
        if not is_marked(there[name], recorded[name]):
            raise IdentityError(f"{folder / name}: not as it was committed; {_CHANGED}")


def _is_entry(path: Path) -> bool:
    """Whether it is a file, or a link to anything, which no record has."""
    return path.is_symlink() or not path.is_dir()
