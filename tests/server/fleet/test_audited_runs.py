"""`fedlora verify RUN`: one flipped bit in any file of a run is found, and so is a server that writes a round anew."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fedlora.errors import IdentityError, SignatureError
from fedlora.identity.audit import audited, is_run
from fedlora.identity.canonical import canonical
from fedlora.identity.envelope import seal
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.records import ANSWERS, HEAD, KEYS, RECORD, RoundEntry, RunHead, mark_of, read_sealed, sealed
from fedlora.identity.statement import digest
from fedlora_export.commands.verify import verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.fake_grid import Honest, Player
from tests.server.run.test_killed_server import base_in
from tests.server.signed_fleet import SignedFleet


@dataclass
class Made:
    """A run that was made, its server's pair, and a folder for its copies."""

    run: Path
    key: SigningKey
    folder: Path

    @property
    def public(self) -> PublicKey:
        return self.key.public

    def copy(self) -> Path:
        place = self.folder / "copy"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.run, place)
        return place


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = SignedFleet(base_in(folder), folder, rounds=2)
    fleet.play()
    return Made(fleet.run, fleet.signer.key, folder)


@pytest.fixture(scope="module")
def unsigned(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("simulation")
    (folder / "pack").mkdir()
    played = Player(base_in(folder / "pack"), folder).soundly({node: Honest(node) for node in (1, 2)}, rounds=2)
    return Made(played.path, made.key, folder)


def covered(run: Path) -> list[Path]:
    """Every file of a run but the lock, which is empty."""
    return [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "lock"]


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("trusts", [True, False], ids=["with the server's key", "without"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_flipped_bit_in_any_file_is_found(made: Made, trusts: bool, draw: st.DataObject) -> None:
    path = draw.draw(st.sampled_from(covered(made.run)))
    bit = draw.draw(st.integers(0, 8 * path.stat().st_size - 1))
    sound = path.read_bytes()
    flipped(path, bit)
    try:
        with pytest.raises(IdentityError):
            list(audited(made.run, made.public if trusts else None))
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize("which", ["made", "unsigned"])
def test_each_file_is_covered_at_its_beginning_its_middle_and_its_end(
    which: str, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(which)
    for path in covered(made.run):
        sound, size = path.read_bytes(), path.stat().st_size
        for bit in {0, 8 * (size // 2) + 1, 8 * size - 1}:
            flipped(path, bit)
            with pytest.raises(IdentityError):
                list(audited(made.run))
            path.write_bytes(sound)
    assert list(audited(made.run))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_each_bit_of_an_unsigned_record_is_found_by_the_one_after_it(unsigned: Made, place: int, bit: int) -> None:
    run = unsigned.run
    path = run / "rounds" / "0001" / RECORD
    sound = path.read_bytes()
    flipped(path, 8 * (place % len(sound)) + bit)
    try:
        with pytest.raises(IdentityError):
            list(audited(run))
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize("name", [HEAD, f"rounds/0001/{RECORD}", f"rounds/0002/{RECORD}", f"rounds/0002/{ANSWERS}"])
def test_a_record_that_is_cut_at_any_byte_is_found(made: Made, name: str) -> None:
    path = made.run / name
    sound = path.read_bytes()
    try:
        for length in [*range(0, len(sound), 211), len(sound) - 1]:
            path.write_bytes(sound[:length])
            with pytest.raises(IdentityError):
                list(audited(made.run, made.public))
    finally:
        path.write_bytes(sound)


def _removes(name: str) -> Callable[[Path], None]:
    def remove(run: Path) -> None:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return remove


def _adds(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text("{}")


def _swaps(one: str, other: str) -> Callable[[Path], None]:
    def swap(run: Path) -> None:
        (run / one).rename(run / "aside")
        (run / other).rename(run / one)
        (run / "aside").rename(run / other)

    return swap


@pytest.mark.parametrize(
    "change",
    [
        _removes("rounds/0002"),
        _removes("rounds/0001"),
        _removes(HEAD),
        _removes(KEYS),
        _removes("metrics.jsonl"),
        _removes(f"rounds/0001/{RECORD}"),
        _removes(f"rounds/0002/{RECORD}"),
        _removes("rounds/0001/adapter"),
        _removes(f"rounds/0002/{ANSWERS}"),
        _adds("rounds/0001/adapter/more.json"),
        _adds("rounds/0003"),
        _adds("rounds/notes"),
        _adds(f"{KEYS}/more"),
        lambda run: (run / "rounds" / "0001" / "more").symlink_to(run / "rounds" / "0002"),
        _swaps("rounds/0001", "rounds/0002"),
        _swaps(f"rounds/0001/{ANSWERS}", f"rounds/0002/{ANSWERS}"),
        lambda run: (run / "rounds" / "0001" / "sealed.json").symlink_to(
            (run / "rounds" / "0001" / "sealed.json").rename(run / "aside")
        ),
    ],
)
def test_what_is_taken_away_added_or_exchanged_is_found(made: Made, change: Callable[[Path], object]) -> None:
    run = made.copy()
    change(run)
    with pytest.raises(IdentityError):
        list(audited(run))


def test_another_key_or_none_is_not_the_servers(made: Made, unsigned: Made) -> None:
    with pytest.raises(SignatureError, match="expected"):
        list(audited(made.run, SigningKey.generate().public))
    with pytest.raises(SignatureError, match="nobody signed it"):
        list(audited(unsigned.run, made.public))
    assert "not signed" in list(audited(unsigned.run))[-2]
    assert any("compare it with the server's" in line for line in audited(made.run))


def test_signatures_cannot_be_taken_off(made: Made) -> None:
    run = made.copy()
    last, head = run / "rounds" / "0002" / RECORD, run / HEAD
    last.write_bytes(sealed(read_sealed(RoundEntry, last.read_bytes(), None, "here"), None))
    head.write_bytes(sealed(read_sealed(RunHead, head.read_bytes(), None, "here"), None))
    with pytest.raises(SignatureError, match="nobody signed it"):
        list(audited(run))


def _written_anew(run: Path, key: SigningKey, change: Callable[[RoundEntry], RoundEntry], server_round: int) -> None:
    """What a server with its key can do: a round is another, and every record after it follows that one."""
    previous = None
    for path in sorted((run / "rounds").glob(f"*/{RECORD}")):
        entry = read_sealed(RoundEntry, path.read_bytes(), None, "here")
        if entry.round >= server_round:
            entry = change(entry) if entry.round == server_round else replace(entry, previous=previous or "")
            path.write_bytes(sealed(entry, key))
        previous = digest(path.read_bytes())
    head = read_sealed(RunHead, (run / HEAD).read_bytes(), None, "here")
    (run / HEAD).write_bytes(sealed(replace(head, record=previous or ""), key))


def test_a_server_that_writes_a_round_anew_with_its_own_key_is_found_by_what_devices_signed_after_it(
    made: Made,
) -> None:
    run = made.copy()
    weights = run / "rounds" / "0001" / "adapter" / "adapter_model.safetensors"
    flipped(weights, 8 * weights.stat().st_size - 10)

    def another(entry: RoundEntry) -> RoundEntry:
        name = weights.relative_to(run / "rounds" / "0001").as_posix()
        return replace(entry, files={**entry.files, name: mark_of(weights)})

    _written_anew(run, made.key, another, 1)
    with pytest.raises(IdentityError, match="it signed head"):
        list(audited(run, made.public))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"update": "0" * 64}, "it signed payload"),
        ({"device": "somebody"}, ""),
        ({"key": ""}, "answers; expected"),
        ({"key": "0" * 64}, "is not in"),
    ],
)
def test_a_server_that_says_something_else_of_a_device_than_it_signed_is_found(
    made: Made, change: dict[str, Any], said: str
) -> None:
    run = made.copy()

    def another(entry: RoundEntry) -> RoundEntry:
        first, *others = entry.given
        return replace(entry, given=(replace(first, **change), *others))

    _written_anew(run, made.key, another, 2)
    if not said:  # which name a key has is the server's word
        assert any("somebody" in line for line in audited(run, made.public))
        return
    with pytest.raises(IdentityError, match=said):
        list(audited(run, made.public))


def test_a_record_that_is_not_in_its_one_form_or_has_other_fields_is_refused(made: Made) -> None:
    run = made.copy()
    path = run / "rounds" / "0002" / RECORD
    entry = asdict(read_sealed(RoundEntry, path.read_bytes(), None, "here"))
    for payload in (
        json.dumps(entry).encode(),
        canonical(entry | {"more": 1}),
        canonical(entry | {"round": "2"}),
        canonical(entry | {"round": -1}),
        canonical(entry | {"files": {"a": 1}}),
        canonical(entry | {"given": [{"device": "a"}]}),
        canonical(entry | {"given": ["a"]}),
        canonical([entry]),
        canonical(entry | {"run": "another"}),
        canonical(entry | {"base": "another"}),
        canonical(entry | {"round": 3}),
    ):
        path.write_bytes(seal(payload, RoundEntry.TYPE, made.key))
        with pytest.raises(IdentityError):
            list(audited(run, made.public))
    path.write_bytes(seal(canonical(entry), RunHead.TYPE, made.key))
    with pytest.raises(IdentityError, match="of type"):
        list(audited(run, made.public))


def test_a_run_of_an_earlier_version_has_no_records(unsigned: Made) -> None:
    run = unsigned.copy()
    (run / HEAD).unlink()
    for path in run.glob(f"rounds/*/{RECORD}"):
        path.unlink()
    with pytest.raises(IdentityError, match="it has no records"):
        list(audited(run))


def test_rounds_of_an_earlier_version_are_told_where_later_ones_have_records(unsigned: Made) -> None:
    run = unsigned.copy()
    second = run / "rounds" / "0002" / RECORD
    (run / "rounds" / "0001" / RECORD).unlink()
    entry = replace(read_sealed(RoundEntry, second.read_bytes(), None, "here"), previous="")
    second.write_bytes(sealed(entry, None))
    head = read_sealed(RunHead, (run / HEAD).read_bytes(), None, "here")
    (run / HEAD).write_bytes(sealed(replace(head, record=digest(second.read_bytes())), None))
    lines = list(audited(run))
    assert lines[0] == "rounds 1 to 1: of an earlier version of fedlora, which kept no records"
    assert lines[1].startswith("round 2: record ")


def test_the_command_walks_a_run_and_says_who_made_what(made: Made, tmp_path: Path) -> None:
    made.public.write(tmp_path / "server.pub")
    result = CliRunner().invoke(verify, [str(made.run), "--key", str(tmp_path / "server.pub")])
    assert result.exit_code == 0, result.output
    assert f"signed by {made.public.keyid}" in result.output
    assert "  kitchen (key " in result.output
    plain = CliRunner().invoke(verify, [str(made.run)])
    assert "give --key" in plain.output
    wrong = CliRunner().invoke(verify, [str(tmp_path), "--key", str(tmp_path / "server.pub")])
    assert "--key is for a run" in str(wrong.exception)
    assert is_run(made.run)
    assert not is_run(tmp_path)


def test_an_answer_in_a_run_verifies_for_whoever_has_its_envelope_and_the_key_alone(made: Made) -> None:
    """Without any code of ours but the specification of DSSE."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    line = (made.run / "rounds" / "0001" / ANSWERS).read_bytes().splitlines()[0]
    value = json.loads(line)
    payload = base64.b64decode(value["payload"])
    keyid, _, algorithm = value["signatures"][0]["keyid"].partition(".")
    assert (algorithm, json.loads(payload)["sender"]) == ("ed25519", keyid)
    pem = (made.run / KEYS / f"{keyid}.pub").read_bytes()
    kind = value["payloadType"].encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    load_pem_public_key(pem).verify(base64.b64decode(value["signatures"][0]["sig"]), message)  # type: ignore[union-attr, call-arg]
