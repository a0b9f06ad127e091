"""Readers of what is signed: public keys, statements, and a run that is held against its records."""

from __future__ import annotations

from pathlib import Path

from fedlora.identity.audit import audited
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.records import RunHead, read_sealed, sealed
from fedlora.identity.rotation import read_rotated, rotated
from fedlora.identity.statement import ANSWER, Statement, read_signed, signed

from tests.fuzz.reader import Reader, files_reader, written
from tests.server.run.test_killed_server import base_in
from tests.server.signed_fleet import SignedFleet


def statements(folder: Path) -> Reader:
    """A public key, what it said, and who takes its place; each is read by itself."""
    key, new = SigningKey.generate(), SigningKey.generate()
    said = Statement(
        kind="train", run="7", round=3, sender=key.public.keyid, receiver=new.public.keyid, payload="0" * 64,
        base="0" * 64, config="0" * 64, counter=7, head="0" * 64, head_round=2,
    )  # fmt: skip
    files: dict[str, str | bytes] = {
        "key.pub": key.public.to_pem(),
        "said.json": signed(said, ANSWER, key),
        "rotated.json": rotated(key, new.public, "2026-12-01T00:00:00Z"),
        "head.json": sealed(RunHead(run="7", round=3, record="0" * 64, files={"config.json": "0" * 64}), key),
    }

    def read(place: Path, name: str) -> None:
        data = (place / name).read_bytes()
        if name == "key.pub":
            PublicKey.from_pem(data)
        elif name == "said.json":
            read_signed(data, ANSWER, [key.public], "here")
        elif name == "rotated.json":
            read_rotated(data, [key.public])
        else:
            read_sealed(RunHead, data, None, "here")

    return Reader(written(folder / "statements", files), tuple(files), read, are_messages=True)


def signed_runs(folder: Path) -> Reader:
    """A run of a fleet that signs, as `fedlora verify` walks it."""
    place = folder / "fleet"
    place.mkdir()
    fleet = SignedFleet(base_in(place), place, rounds=2)
    run = fleet.play()
    return files_reader(run, lambda place: list(audited(place, fleet.signer.key.public)))
