"""Rounds of a fleet that signs: records tell who gave what, and an answer that is not its device's own counts nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fedlora.errors import IdentityError, RunError
from fedlora.identity.audit import audited
from fedlora.identity.keys import SigningKey
from fedlora.identity.rotation import rotated
from fedlora.wire.beside import SIGNED, SIGNED_SAID
from fedlora_server.run.run_directory import read_metrics
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from tests.server.fake_grid import Honest, Player, update_of
from tests.server.records import entry_of
from tests.server.signed_fleet import NAMES, Change, SignedFleet, SigningDevice

FIRST = 7
AT = "2026-12-01T00:00:00Z"


@pytest.fixture
def fleet(play: Player, tmp_path: Path) -> SignedFleet:
    return SignedFleet(play.base, tmp_path, rounds=2)


def test_every_update_is_in_the_record_with_its_device_and_key(fleet: SignedFleet) -> None:
    run = fleet.play()
    lines = list(audited(run, fleet.signer.key.public))
    for server_round in (1, 2):
        given = entry_of(run, server_round).given
        assert [each.device for each in given] == sorted(NAMES.values())
        keys = {NAMES[node]: key.public.keyid for node, key in fleet.keys.items()}
        assert {each.device: each.key for each in given} == keys
    assert [line.partition(":")[0] for line in lines if line.startswith("round")] == ["round 1", "round 2"]
    assert f"signed by {fleet.signer.key.public.keyid}" in lines[-2]
    assert lines[-1] == "not covered by any record: lock"
    assert [line["excluded"] for line in read_metrics(run)] == [{}, {}, {}]


def envelope(message: Message) -> bytes:
    found = message.content.config_records[SIGNED][SIGNED_SAID]
    assert isinstance(found, bytes)
    return found


def with_envelope(answer: Message, message: Message, said: bytes | None) -> Message:
    """The same answer, signed by something else, or by nothing."""
    content = RecordDict({name: record for name, record in answer.content.items() if name != SIGNED})
    if said is not None:
        content[SIGNED] = ConfigRecord({SIGNED_SAID: said})
    return Message(content, reply_to=message)


def unsigned(device: SigningDevice, message: Message, answer: Message) -> Message:
    return with_envelope(answer, message, None)


def replayed(device: SigningDevice, message: Message, answer: Message) -> Message:
    """In round 2, what it said in round 1, whole."""
    trained = [told for told, asked in zip(device.told, device.asked, strict=True) if _is_training(asked)]
    if not _is_training(message) or len(trained) < 2:
        return answer
    return Message(RecordDict(dict(trained[0].content.items())), reply_to=message)


def relabelled(device: SigningDevice, message: Message, answer: Message) -> Message:
    """Another update than it signed."""
    data = answer.content.array_records["update"]["update"].data
    other = data[:-1] + bytes([data[-1] ^ 1])
    content = RecordDict(dict(answer.content.items()))
    array = Array(dtype="uint8", shape=(len(other),), stype="fedlora.update", data=other)
    content["update"] = ArrayRecord({"update": array})
    return Message(content, reply_to=message)


def half(device: SigningDevice, message: Message, answer: Message) -> Message:
    value = json.loads(envelope(answer))
    del value["signatures"][0]
    return with_envelope(answer, message, json.dumps(value).encode())


def swapped(device: SigningDevice, message: Message, answer: Message) -> Message:
    value = json.loads(envelope(answer))
    first, second = value["signatures"]
    first["sig"], second["sig"] = second["sig"], first["sig"]
    return with_envelope(answer, message, json.dumps(value).encode())


def no_envelope(device: SigningDevice, message: Message, answer: Message) -> Message:
    return with_envelope(answer, message, b"{}")


def its_instruction(device: SigningDevice, message: Message, answer: Message) -> Message:
    """The server's own words, given back."""
    return with_envelope(answer, message, envelope(message))


def reordered(device: SigningDevice, message: Message, answer: Message) -> Message:
    """The update, with what it signed for the measurement before."""
    measured = next(told for told, asked in zip(device.told, device.asked, strict=True) if not _is_training(asked))
    return with_envelope(answer, message, envelope(measured))


def _is_training(message: Message) -> bool:
    return message.metadata.message_type == MessageType.TRAIN


def only_training(change: Change) -> Change:
    return lambda device, message, answer: change(device, message, answer) if _is_training(message) else answer


@pytest.mark.parametrize(
    ("change", "reason", "rounds"),
    [
        (unsigned, "unsigned", (1, 2)),
        (replayed, "replayed", (2,)),
        (reordered, "replayed", (1, 2)),
        (relabelled, "relabelled", (1, 2)),
        (half, "bad-signature", (1, 2)),
        (swapped, "bad-signature", (1, 2)),
        (no_envelope, "bad-signature", (1, 2)),
        (its_instruction, "bad-signature", (1, 2)),
    ],
)
def test_an_answer_that_is_not_the_devices_own_costs_only_its_own_part(
    fleet: SignedFleet, change: Change, reason: str, rounds: tuple[int, ...]
) -> None:
    fleet.devices[FIRST].change = only_training(change)
    run = fleet.play()
    list(audited(run, fleet.signer.key.public))
    excluded = {line["round"]: line["excluded"] for line in read_metrics(run)}
    assert excluded == {number: {reason: 1} if number in rounds else {} for number in (0, 1, 2)}
    for server_round in rounds:
        assert NAMES[FIRST] not in {each.device for each in entry_of(run, server_round).given}


def test_a_device_that_signs_for_another_counts_for_neither(fleet: SignedFleet) -> None:
    fleet.devices[FIRST].key = fleet.keys[13]
    run = fleet.play()
    assert {each.device for each in entry_of(run, 2).given} == {"attic", "cellar"}
    # Its instructions are not for the key that it has.
    assert read_metrics(run)[1]["excluded"] == {"policy-replay": 1}


def test_the_answer_of_one_device_as_anothers_is_refused(fleet: SignedFleet) -> None:
    def borrowed(device: SigningDevice, message: Message, answer: Message) -> Message:
        lender = fleet.devices[13]
        told = lender.told[-1] if lender.told and _is_training(lender.asked[-1]) else answer
        return Message(RecordDict(dict(told.content.items())), reply_to=message)

    last = (1 << 63) + 11  # is asked when the other has answered
    fleet.devices[last].change = only_training(borrowed)
    run = fleet.play()
    assert read_metrics(run)[1]["excluded"] == {"bad-signature": 1}
    assert {each.device for each in entry_of(run, 1).given} == {"attic", "kitchen"}


def test_a_measurement_that_is_not_signed_is_no_loss(fleet: SignedFleet) -> None:
    fleet.devices[FIRST].change = lambda device, message, answer: (
        answer if _is_training(message) else unsigned(device, message, answer)
    )
    run = fleet.play()
    assert [set(line["loss"]) for line in read_metrics(run)] == [{"attic", "cellar"}] * 3


def test_a_revoked_device_counts_no_more_from_that_round_on(fleet: SignedFleet) -> None:
    def revoked_in_round_2(device: SigningDevice, message: Message, answer: Message) -> Message:
        if _is_training(message) and update_of(message).server_round == 2:
            fleet.book.pairs.pop(FIRST, None)
        return answer

    fleet.devices[FIRST].change = revoked_in_round_2
    run = fleet.play()
    assert [len(entry_of(run, number).given) for number in (1, 2)] == [3, 2]
    assert read_metrics(run)[2]["excluded"] == {"revoked": 1}
    list(audited(run, fleet.signer.key.public))


def test_a_key_that_was_rotated_meanwhile_counts_no_more(fleet: SignedFleet) -> None:
    def rekeyed(device: SigningDevice, message: Message, answer: Message) -> Message:
        fleet.book.pairs[FIRST] = SigningKey.generate().public
        return answer

    fleet.devices[FIRST].change = only_training(rekeyed)
    run = fleet.play()
    # The answer was signed by the key before; afterwards, instructions are for the new one.
    assert read_metrics(run)[1]["excluded"] == {"bad-signature": 1}
    assert read_metrics(run)[2]["excluded"] == {"policy-replay": 1}


def test_a_device_without_a_pair_takes_part_unsigned(fleet: SignedFleet) -> None:
    fleet.book.pairs[FIRST] = None
    asked: list[Message] = []

    def plain(message: Message) -> list[Message]:
        asked.append(message)
        return list(Honest(FIRST)(message))

    fleet.devices[FIRST] = plain  # type: ignore[assignment]
    run = fleet.play()
    assert all(SIGNED not in message.content for message in asked)
    assert {each.device: bool(each.key) for each in entry_of(run, 1).given} == {
        "attic": True, "cellar": True, "kitchen": False,
    }  # fmt: skip
    lines = list(audited(run, fleet.signer.key.public))
    assert any("kitchen (not signed)" in line for line in lines)


def test_a_run_that_goes_on_goes_on_with_its_chain_and_no_other_server_does(fleet: SignedFleet) -> None:
    fleet.play(rounds=1)
    run = fleet.play(resume=True)
    assert len([line for line in audited(run, fleet.signer.key.public) if line.startswith("round")]) == 2
    fleet.signer = replace(fleet.signer, key=SigningKey.generate())
    with pytest.raises(RunError, match="expected this server's key"):
        fleet.play(resume=True, rounds=3)


def test_devices_and_auditors_follow_the_servers_key_when_it_is_rotated(fleet: SignedFleet) -> None:
    fleet.play(rounds=1)
    first = fleet.signer.key
    new = SigningKey.generate()
    fleet.signer = replace(fleet.signer, key=new, rotated=(rotated(first, new.public, AT),))
    run = fleet.play(resume=True)
    lines = list(audited(run, first.public))
    signers = [line.split("signed by ")[1].split(",")[0] for line in lines if line.startswith("round")]
    assert signers == [first.public.keyid[:16], new.public.keyid[:16]]
    assert [line["excluded"] for line in read_metrics(run)] == [{}, {}, {}]
    with pytest.raises(IdentityError, match="expected"):
        list(audited(run, SigningKey.generate().public))


def test_the_key_before_counts_no_more_once_devices_have_followed(fleet: SignedFleet) -> None:
    fleet.play(rounds=1)
    before, new = fleet.signer, SigningKey.generate()
    fleet.signer = replace(before, key=new, rotated=(rotated(before.key, new.public, AT),))
    fleet.play(resume=True)
    fleet.signer, fleet.run = before, fleet.folder / "another"
    with pytest.raises(RunError, match="policy-key"):
        fleet.play()


def test_a_server_without_the_key_moves_no_device(fleet: SignedFleet) -> None:
    fleet.signer = replace(fleet.signer, key=SigningKey.generate())
    with pytest.raises(RunError, match=r"policy-key': 3"):
        fleet.play()


def test_devices_refuse_a_server_that_has_written_a_round_anew(fleet: SignedFleet, tmp_path: Path) -> None:
    run = fleet.play()
    (run / "rounds" / "0002").rename(tmp_path / "0002")  # and round 2 is done again, with other devices
    del fleet.book.pairs[13]
    fleet.play(resume=True)
    fleet.book.pairs[13] = fleet.keys[13].public
    with pytest.raises(RunError, match="policy-history"):
        fleet.play(resume=True, rounds=3)


def test_what_is_not_changed_is_not_refused(fleet: SignedFleet) -> None:
    """What is refused above is refused for what was changed, and not for how."""
    fleet.devices[FIRST].change = lambda device, message, answer: with_envelope(answer, message, envelope(answer))
    assert [line["excluded"] for line in read_metrics(fleet.play())] == [{}, {}, {}]
