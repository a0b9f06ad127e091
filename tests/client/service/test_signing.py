"""What a device takes for its server's word: signed by its key, for this device, and newer than all before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError, IdentityError, PolicyError
from fedlora.identity.envelope import seal
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.rotation import rotated
from fedlora.identity.statement import (
    ANSWER,
    INSTRUCTION,
    Statement,
    digest,
    digest_of,
    digest_of_config,
    digest_of_metrics,
    read_signed,
    signed,
)
from fedlora.wire.refusal import POLICY_REASONS
from fedlora.wire.update import decode_update
from fedlora_client.courier.question import Answer, Question
from fedlora_client.policy.machine import Machine
from fedlora_client.service.config import read_device
from fedlora_client.service.signing import Signing, check_of
from fedlora_client.service.work import DeviceWork

from tests.client.service.devices import make_device, question

CONFIG: dict[str, Any] = {"name": "autumn", "train.lr": 0.5, "server.rounds": 3}
AT = "2026-12-01T00:00:00Z"


@pytest.fixture(scope="module")
def server() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def mine() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def stranger() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signed.json"


def said(server: SigningKey, mine: SigningKey, **changed: Any) -> Statement:
    sound = Statement(
        kind="train", run="run-7", round=3, sender=server.public.keyid, receiver=mine.public.keyid, payload=digest(b"down"),
        base="f" * 64, config=digest_of_config(CONFIG), counter=1000, head="a" * 64, head_round=2,
    )  # fmt: skip
    return replace(sound, **changed)


def asked(statement: Statement, key: SigningKey, **changed: Any) -> Question:
    made = Question(
        kind="train", run_config=CONFIG, run_id=1, seconds=9.0, data=b"down",
        signed=signed(statement, INSTRUCTION, key).decode(),
    )  # fmt: skip
    return replace(made, **changed)


def refused(signing: Signing, question: Question) -> str:
    with pytest.raises(PolicyError) as raised:
        signing.check(question)
    assert raised.value.reason in POLICY_REASONS
    return raised.value.reason


def test_a_sound_instruction_is_taken_and_its_answer_is_signed(
    server: SigningKey, mine: SigningKey, path: Path
) -> None:
    signing = Signing(mine, server.public, path)
    statement = signing.check(asked(said(server, mine), server))
    answer = signing.signed(Answer(device="kitchen", data=b"up"), statement)
    told = read_signed(answer.signed.encode(), ANSWER, [mine.public], "here").statement
    assert (told.sender, told.receiver) == (mine.public.keyid, server.public.keyid)
    assert (told.payload, told.instruction, told.counter) == (digest(b"up"), digest_of(statement), 1000)
    assert (told.run, told.round, told.base, told.head) == ("run-7", 3, "f" * 64, "a" * 64)


def test_a_measurement_is_signed_by_its_numbers_and_a_refusal_not_at_all(
    server: SigningKey, mine: SigningKey, path: Path
) -> None:
    signing = Signing(mine, server.public, path)
    statement = signing.check(asked(said(server, mine, kind="evaluate"), server, kind="evaluate"))
    answer = signing.signed(Answer(device="kitchen", metrics={"loss": 1.5, "tokens": 3}), statement)
    told = read_signed(answer.signed.encode(), ANSWER, [mine.public], "here").statement
    assert told.payload == digest_of_metrics({"tokens": 3.0, "loss": 1.5})
    assert signing.signed(Answer(device="kitchen", said="no data"), statement).signed == ""
    with pytest.raises(IdentityError):
        signing.signed(Answer(device="kitchen", metrics={"loss": float("nan")}), statement)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"receiver": "0" * 64}, "policy-replay"),
        ({"kind": "evaluate"}, "policy-replay"),
        ({"payload": digest(b"other")}, "policy-replay"),
        ({"config": digest_of_config(CONFIG | {"train.lr": 0.4})}, "policy-replay"),
        ({"sender": "0" * 64}, "policy-key"),
    ],
)
def test_what_was_signed_for_another_device_message_or_configuration_is_refused(
    server: SigningKey, mine: SigningKey, path: Path, change: dict[str, Any], reason: str
) -> None:
    assert refused(Signing(mine, server.public, path), asked(said(server, mine, **change), server)) == reason
    assert not path.exists()


def test_what_the_server_did_not_sign_is_refused(
    server: SigningKey, mine: SigningKey, stranger: SigningKey, path: Path
) -> None:
    signing = Signing(mine, server.public, path)
    sound = asked(said(server, mine), server)
    envelope = json.loads(sound.signed)
    half = envelope | {"signatures": envelope["signatures"][:1]}
    for text in (
        asked(said(stranger, mine), stranger).signed,
        asked(said(server, mine), stranger).signed,
        signed(said(server, mine), ANSWER, server).decode(),
        seal(b"{}", INSTRUCTION, server).decode(),
        json.dumps(half),
        sound.signed[:-1],
        "{}",
        "\ud800",
    ):
        assert refused(signing, replace(sound, signed=text)) == "policy-key"
    assert refused(signing, replace(sound, signed="")) == "policy-unsigned"
    # A chain that the server's key did not begin leads nowhere.
    foreign = rotated(stranger, stranger.public, AT).decode()
    assert refused(signing, replace(asked(said(stranger, mine), stranger), rotated=(foreign,))) == "policy-key"


def test_old_instructions_are_refused_over_restarts_and_the_last_one_may_be_asked_again(
    server: SigningKey, mine: SigningKey, path: Path
) -> None:
    first, second = asked(said(server, mine), server), asked(said(server, mine, counter=1001, round=4), server)
    same_counter = asked(said(server, mine, counter=1001, round=5), server)
    for each in (first, second):
        Signing(mine, server.public, path).check(each)
    for again in (first, same_counter):
        assert refused(Signing(mine, server.public, path), again) == "policy-replay"
    assert Signing(mine, server.public, path).check(second).counter == 1001
    assert Signing(mine, server.public, path).check(asked(said(server, mine, counter=1002), server)).counter == 1002


def test_another_record_of_the_same_round_is_refused(server: SigningKey, mine: SigningKey, path: Path) -> None:
    Signing(mine, server.public, path).check(asked(said(server, mine), server))
    later = {"counter": 1001, "head": "b" * 64}
    assert refused(Signing(mine, server.public, path), asked(said(server, mine, **later), server)) == "policy-history"
    other_run = asked(said(server, mine, **later, run="run-8"), server)
    assert Signing(mine, server.public, path).check(other_run).run == "run-8"
    next_round = asked(said(server, mine, counter=1002, head="b" * 64, head_round=3, round=4), server)
    assert Signing(mine, server.public, path).check(next_round).round == 4


def test_what_is_remembered_is_bounded(server: SigningKey, mine: SigningKey, path: Path) -> None:
    signing = Signing(mine, server.public, path)
    for number in range(100):
        run = {"run": f"run-{number % 20}", "head": f"{number}", "head_round": number, "counter": 2000 + number}
        signing.check(asked(said(server, mine, **run), server))
    content = json.loads(path.read_text())
    assert len(content["heads"]) == 16
    for number in range(100, 200):
        signing.check(asked(said(server, mine, head="", head_round=number, counter=2000 + number), server))
    assert max(len(rounds) for rounds in json.loads(path.read_text())["heads"].values()) == 64


def test_a_new_key_of_the_server_is_followed_and_the_one_before_counts_no_more(
    server: SigningKey, mine: SigningKey, stranger: SigningKey, path: Path
) -> None:
    new = SigningKey.generate()
    chain = (rotated(server, new.public, AT).decode(),)
    by_new = asked(said(new, mine, counter=1001), new, rotated=chain)
    assert refused(Signing(mine, server.public, path), replace(by_new, rotated=())) == "policy-key"
    Signing(mine, server.public, path).check(by_new)
    signing = Signing(mine, server.public, path)
    assert signing.server == new.public
    assert refused(signing, asked(said(server, mine, counter=1002), server)) == "policy-key"
    # Who has the key before leads nobody astray who has followed already.
    astray = (rotated(server, stranger.public, AT).decode(),)
    assert refused(signing, asked(said(stranger, mine, counter=1003), stranger, rotated=astray)) == "policy-key"
    # A key that its owner puts into device.toml is the one that counts.
    assert Signing(mine, stranger.public, path).server == stranger.public


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"counter": 1}', '{"server": 1}'])
def test_a_damaged_memory_is_refused_for_it_keeps_old_instructions_out(
    server: SigningKey, mine: SigningKey, path: Path, text: str
) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"signed\.json"):
        Signing(mine, server.public, path)


def test_a_full_disk_costs_no_round(
    server: SigningKey, mine: SigningKey, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedlora_client.service.signing.write_text", full)
    signing = Signing(mine, server.public, path)
    signing.check(asked(said(server, mine), server))
    assert refused(signing, asked(said(server, mine, counter=999), server)) == "policy-replay"


# The service: a device whose device.toml has both keys.


@pytest.fixture
def device(tmp_path: Path, base: BasePack, server: SigningKey, mine: SigningKey) -> DeviceWork:
    mine.write(tmp_path / "identity.key")
    server.public.write(tmp_path / "server.pub")
    more = '[server]\nidentity = "identity.key"\nserver_identity = "server.pub"\n'
    config = make_device(tmp_path, base, more=more)
    return DeviceWork(config, machine=Machine(config.state / "no-machine"))


def instructed(plain: Question, server: SigningKey, mine: SigningKey, counter: int, **changed: Any) -> Question:
    """The question with an instruction that is signed for it."""
    statement = Statement(
        kind=plain.kind, run="run-7", round=3, sender=server.public.keyid, receiver=mine.public.keyid,
        payload=digest(plain.data or b""), base=changed.pop("base"), config=digest_of_config(plain.run_config),
        counter=counter, head="", head_round=2,
    )  # fmt: skip
    return replace(plain, signed=signed(replace(statement, **changed), INSTRUCTION, server).decode())


def test_the_service_answers_its_server_and_signs(
    device: DeviceWork, base: BasePack, server: SigningKey, mine: SigningKey
) -> None:
    plain = question(base)
    first = device(instructed(plain, server, mine, 1, base=base.fingerprint), lambda: True)
    assert first.said == ""
    told = read_signed(first.signed.encode(), ANSWER, [mine.public], "here").statement
    assert (told.payload, told.round) == (digest(first.data), 3)
    # Asked again under another counter, what was kept is given, signed for the new instruction.
    again = device(instructed(plain, server, mine, 2, base=base.fingerprint), lambda: True)
    assert again.data == first.data
    assert read_signed(again.signed.encode(), ANSWER, [mine.public], "here").statement.counter == 2
    measured = device(instructed(question(base, "evaluate"), server, mine, 3, base=base.fingerprint), lambda: True)
    assert read_signed(measured.signed.encode(), ANSWER, [mine.public], "here").statement.kind == "evaluate"


def test_the_service_computes_nothing_for_anybody_else(
    device: DeviceWork, base: BasePack, server: SigningKey, mine: SigningKey, stranger: SigningKey
) -> None:
    plain, fingerprint = question(base), base.fingerprint
    reasons = [
        device(asked_, lambda: True).refusal
        for asked_ in (
            plain,
            instructed(plain, stranger, mine, 1, base=fingerprint),
            replace(instructed(plain, server, mine, 2, base=fingerprint), data=question(base, server_round=4).data),
            instructed(plain, server, mine, 3, base=fingerprint, round=4),
            instructed(plain, server, mine, 4, base=fingerprint, run="run-8"),
            instructed(plain, server, mine, 5, base="0" * 64),
        )
    ]
    assert reasons == ["policy-unsigned", "policy-key", *["policy-replay"] * 4]


def test_an_update_is_of_its_instruction(base: BasePack, server: SigningKey, mine: SigningKey) -> None:
    update = decode_update(bytes(question(base).data or b""))
    sound = said(server, mine, base=base.fingerprint)
    check_of(sound, update)
    changes: list[Callable[[], Statement]] = [
        lambda: replace(sound, run="x"), lambda: replace(sound, round=2), lambda: replace(sound, base="x"),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(PolicyError, match="the instruction is of another"):
            check_of(change(), update)


def test_one_of_both_keys_is_none(tmp_path: Path, base: BasePack) -> None:
    with pytest.raises(ConfigError, match="one is missing; give both"):
        make_device(tmp_path, base, more='[server]\nidentity = "identity.key"\n')
    (tmp_path / "device.toml").write_text('[device]\nname = "a"\n[server]\nidentity = "i"\nserver_identity = "s"\n')
    config = read_device(tmp_path / "device.toml")
    assert config.server.identity == str(tmp_path / "i")
    with pytest.raises(IdentityError, match="cannot be read"):
        Signing.of(config)


def test_public_keys_are_compared_whole(server: SigningKey, mine: SigningKey, path: Path) -> None:
    """One half of the server's pair, with another half of a stranger's, is another key."""
    mixed = PublicKey(server.public.ed25519, mine.public.ml_dsa_65)
    assert refused(Signing(mine, mixed, path), asked(said(server, mine), server)) == "policy-key"
