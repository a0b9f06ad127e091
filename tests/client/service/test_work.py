"""What the device service does with a question: policy, work, and what it remembers."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import AggregationConfig, DataConfig
from fedlora.peft.directory import read_peft
from fedlora.wire.refusal import POLICY_REASONS
from fedlora.wire.task import Task
from fedlora.wire.update import decode_update
from fedlora_client.courier.question import Answer, Question
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows, make_windows
from fedlora_client.device import Device
from fedlora_client.policy.machine import Machine
from fedlora_client.records.jsonl import read_jsonl
from fedlora_client.records.withdrawn import digest_of, withdraw
from fedlora_client.service import work as work_module
from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.report import lines, report
from fedlora_client.service.work import DeviceWork
from torch import Tensor

from tests.client.service.devices import LORA, make_device, question, run_config
from tests.tiny.adapters import random_adapter
from tests.tiny.llamas import Variant, save_pack

NOON = datetime(2026, 11, 30, 12, 0)


def answered(config: DeviceConfig, asked: Question, machine: Machine | None = None, now: datetime = NOON) -> Answer:
    """By a service that was started for this question alone."""
    work = DeviceWork(config, machine=machine or Machine(config.state / "no-machine"), now=lambda: now)
    return work(asked, lambda: True)


@pytest.fixture
def device(tmp_path: Path, base: BasePack) -> DeviceConfig:
    return make_device(tmp_path, base)


def test_a_device_trains_on_its_own_data_whatever_the_run_says(device: DeviceConfig, base: BasePack) -> None:
    given = answered(device, question(base))
    assert (given.device, given.said) == ("kitchen", "")
    update = decode_update(bytes(given.data))
    assert (update.run, update.server_round, update.metrics["examples"]) == ("run-7", 3, 36)
    measured = answered(device, question(base, "evaluate"))
    assert measured.metrics["examples"] == 4
    assert measured.metrics["loss"] > 0


POLICIES: list[tuple[str, dict[str, Any], str]] = [
    ("runs = ['autumn-*']", {}, "policy-run"),
    ("bases = ['0123456789abcdef']", {}, "policy-base"),
    ("methods = ['fedavg']", {}, "policy-method"),
    ("max_rank = 1", {}, "policy-rank"),
    ("max_steps = 1", {}, "policy-steps"),
    ("max_memory_mb = 1", {}, "policy-memory"),
    ("min_examples = 37", {}, "policy-examples"),
    ("quiet_hours = ['11:30-12:30']", {}, "policy-hours"),
    ("min_battery = 50", {"capacity": "20", "status": "Charging"}, "policy-battery"),
    ("mains_only = true", {"capacity": "90", "status": "Discharging"}, "policy-mains"),
    ("idle_only = true", {}, "policy-idle"),
    ("bytes_a_day = 1000", {}, "policy-bytes"),
]


@pytest.mark.parametrize(("policy", "battery", "reason"), POLICIES, ids=[row[2] for row in POLICIES])
def test_each_refusal_has_the_word_that_the_server_counts_and_is_remembered(
    tmp_path: Path, base: BasePack, policy: str, battery: dict[str, str], reason: str
) -> None:
    config = make_device(tmp_path, base, f"[policy]\n{policy}\n")
    root = tmp_path / "root"
    (root / "proc/pressure").mkdir(parents=True)
    (root / "proc/pressure/cpu").write_text("some avg10=80.00 avg60=80.00 avg300=80.00 total=1\n")
    if battery:
        supply = root / "sys/class/power_supply/BAT0"
        supply.mkdir(parents=True)
        for name, value in {"type": "Battery", **battery}.items():
            (supply / name).write_text(value)
    given = answered(config, question(base), Machine(root))
    assert given.refusal == reason
    assert reason in POLICY_REASONS
    assert policy.partition(" ")[0] in given.said
    assert not given.data
    again = report(config, 5)
    assert again["refused"][reason]["count"] == 1
    assert again["rounds"][-1]["refusal"] == reason
    assert again["running"] is False
    assert any(reason in line for line in lines(again))


def test_a_training_beyond_its_seconds_ends_and_is_refused(
    tmp_path: Path, base: BasePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_device(tmp_path, base, "[policy]\nmax_seconds = 0.5\n")
    given = answered(config, question(base, config=run_config(base, steps=100_000)))
    assert given.refusal == "policy-seconds"
    assert list((config.state / "training").glob("*.safetensors"))


def test_a_measurement_beyond_its_seconds_ends_and_is_refused(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base, "[policy]\nmax_seconds = 1e-9\n")
    assert answered(config, question(base, "evaluate")).refusal == "policy-seconds"


def test_a_round_whose_batches_hold_too_few_examples_is_refused(tmp_path: Path, base: BasePack) -> None:
    """A window of 64 tokens is of two records: what one step with a batch of one sends would be theirs alone."""
    config = make_device(tmp_path, base, "[policy]\nmin_examples = 3\n")
    for steps, batch_size, is_taken in ((1, 1, False), (4, 1, True), (1, 4, True)):
        asked = question(base, config=run_config(base, steps=steps, batch_size=batch_size, sequence_length=64))
        given = answered(config, asked)
        assert given.refusal == ("" if is_taken else "policy-examples")
        assert is_taken or "2 examples in the batches that this round draws" in given.said


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_examples_of_a_round_are_those_of_the_windows_that_its_training_draws(
    device: DeviceConfig, base: BasePack, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    batch = Windows.batch

    def seen(windows: Windows, rows: Tensor) -> Windows:
        drawn.extend(rows.tolist())
        return batch(windows, rows)

    run = run_config(base, steps=3, batch_size=3, sequence_length=24, dropout=dropout)
    made = Device(
        dataclasses.replace(run, data=DataConfig(name="files"), base=str(base.directory)),
        {"data-path": device.data.source},
    )
    monkeypatch.setattr(Windows, "batch", seen)
    for server_round, again in ((1, 0), (2, 0), (2, 1)):
        drawn.clear()
        task = Task(again=again)
        made.train(random_adapter(base, LORA), server_round, task=task)
        windows, examples = made.train_windows(), set[int]()
        begin = 0
        for number, example in enumerate(
            made.data.train
        ):  # one row of all, cut every 24 tokens: each has its own place
            length = make_windows([example], open_tokenizer(base.directory), base.shape, 24, "").learned_tokens
            examples |= {number} if set(range(begin // 24, (begin + length - 1) // 24 + 1)) & set(drawn) else set()
            begin += length
        assert len(windows) == -(-begin // 24)
        assert made.examples_of_round(server_round, task) == len(examples)


def test_a_training_that_runs_into_quiet_hours_ends(
    tmp_path: Path, base: BasePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "_LOOK_EVERY_S", 0.0)
    config, asked = make_device(tmp_path, base, "[policy]\nquiet_hours = ['13:00-14:00']\n"), 0

    def now() -> datetime:
        nonlocal asked
        asked += 1
        return NOON + timedelta(minutes=10 * asked)

    work = DeviceWork(config, machine=Machine(tmp_path / "none"), now=now)
    given = work(question(base, config=run_config(base, steps=100_000)), lambda: True)
    assert given.refusal == "policy-hours"


def test_a_device_that_its_owner_paused_refuses_and_ends_what_it_does(
    device: DeviceConfig, base: BasePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "_LOOK_EVERY_S", 0.0)
    work, polls = DeviceWork(device, machine=Machine(device.state / "none"), now=lambda: NOON), [0]

    def is_wanted() -> bool:
        polls[0] += 1
        if polls[0] == 20:
            device.paused.touch()
        return True

    for _ in range(2):
        given = work(question(base, config=run_config(base, steps=100_000)), is_wanted)
        assert given.refusal == "policy-paused"
    assert polls[0] >= 20
    assert report(device, 1)["paused"]
    device.paused.unlink()
    assert not work(question(base), lambda: True).said


def test_a_device_of_a_smaller_rank_trains_what_it_may_where_the_run_takes_that(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base, "[policy]\nmax_rank = 1\n")
    run = dataclasses.replace(run_config(base), aggregation=AggregationConfig(min_rank=1))
    update = decode_update(bytes(answered(config, question(base, config=run)).data))
    assert {pair.rank for pair in update.adapter.pairs.values()} == {1}


def test_a_days_rounds_are_counted_over_restarts_and_a_question_that_is_repeated_counts_once(
    tmp_path: Path, base: BasePack
) -> None:
    config = make_device(tmp_path, base, "[policy]\nrounds_a_day = 2\n")
    first = answered(config, question(base, server_round=1))
    for server_round in (1, 2, 1):
        assert not answered(config, question(base, server_round=server_round)).said
    assert bytes(answered(config, question(base, server_round=1)).data) != b""
    refused = answered(config, question(base, server_round=3))
    assert (refused.refusal, first.refusal) == ("policy-rounds", "")
    assert not answered(config, question(base, "evaluate", server_round=3)).said
    assert not answered(config, question(base, "evaluate", server_round=3)).said
    assert not answered(config, question(base, "evaluate", server_round=2)).said
    assert answered(config, question(base, "evaluate", server_round=3)).refusal == "policy-rounds"
    assert not answered(config, question(base, server_round=3), now=NOON + timedelta(days=1)).said
    assert (
        answered(config, question(base, server_round=4), now=NOON).said == ""
    )  # of the new day, the clock was set back
    assert answered(config, question(base, server_round=5), now=NOON).refusal == "policy-rounds"


def test_another_question_under_the_number_of_a_round_is_another_round_of_the_day(
    tmp_path: Path, base: BasePack
) -> None:
    config = make_device(tmp_path, base, "[policy]\nrounds_a_day = 1\n")
    for _ in range(2):
        assert not answered(config, question(base)).said
    for other in (
        question(base, config=run_config(base, steps=3)),
        question(base, adapter=random_adapter(base, LORA, seed=5)),
        question(base, task=Task(again=1)),
        question(base, run="another"),
        question(base, server_round=4),
    ):
        assert answered(config, other).refusal == "policy-rounds"
    assert not answered(config, dataclasses.replace(question(base), seconds=9.0)).said


def test_an_answer_that_was_not_taken_is_kept_and_a_new_record_makes_another(
    device: DeviceConfig, base: BasePack
) -> None:
    asked = question(base)
    first = answered(device, asked)
    again = answered(device, dataclasses.replace(asked, seconds=7.0))
    assert bytes(first.data) == bytes(again.data)
    assert report(device, 9)["rounds"][-1]["bytes_up"] == len(first.data)
    path = device.state / "answer"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")  # damaged: it is computed anew
    anew = decode_update(bytes(answered(device, asked).data))
    for module, pair in decode_update(bytes(first.data)).adapter.pairs.items():
        assert np.array_equal(pair.lora_B, anew.adapter.pairs[module].lora_B)
    notes = Path(device.data.source, "notes.jsonl")
    notes.write_text(notes.read_text() + "\n" + json.dumps({"text": "something new"}) * 1)
    assert decode_update(bytes(answered(device, asked).data)).metrics["examples"] == 37


def test_a_service_sees_new_data_and_withdrawals_between_rounds(device: DeviceConfig, base: BasePack) -> None:
    work = DeviceWork(device, machine=Machine(device.state / "none"), now=lambda: NOON)

    def examples(server_round: int) -> float:
        return work(question(base, server_round=server_round), lambda: True).metrics["examples"]

    notes = Path(device.data.source, "notes.jsonl")
    assert examples(1) == 36
    Path(device.data.source, "more.jsonl").write_text("\n".join(json.dumps({"text": f"more {n}"}) for n in range(10)))
    assert examples(2) == 45
    withdraw(device.withdrawn, [{"digest": digest_of(example), "file": "x"} for example in read_jsonl(notes)[:6]])
    assert examples(3) == 39


def test_a_base_that_was_replaced_is_opened_anew_and_a_damaged_one_refused(tmp_path: Path, base: BasePack) -> None:
    mine = save_pack(Variant(seed=5), tmp_path / "pack")
    config = make_device(tmp_path / "device", mine)
    work = DeviceWork(config, machine=Machine(tmp_path / "none"), now=lambda: NOON)
    assert not work(question(mine), lambda: True).said
    other = question(base)
    said = work(other, lambda: True).said
    assert base.fingerprint[:16] in said
    assert mine.fingerprint[:16] in said
    weights = mine.directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    said = work(question(mine), lambda: True).said
    assert "model.safetensors" in said


def test_the_committed_adapter_is_on_the_device_after_a_measurement(device: DeviceConfig, base: BasePack) -> None:
    adapter = random_adapter(base, LORA)
    answered(device, question(base, "evaluate", 0, adapter=adapter))
    assert report(device, 1)["adapter"] is None  # nothing was committed yet
    answered(device, question(base, "evaluate", 4, adapter=adapter))
    told = report(device, 1)["adapter"]
    assert (told["round"], told["name"], told["rank"]) == (4, "notes", 2)
    found = read_peft(told["path"])
    assert found.base_fingerprint == base.fingerprint
    for module, pair in adapter.pairs.items():
        assert np.array_equal(found.adapter.pairs[module].lora_B, pair.lora_B)
    answered(device, question(base, "train", 5, adapter=adapter))
    assert report(device, 1)["adapter"]["at"] == told["at"]  # it is there already


def test_without_measurements_what_comes_down_is_the_committed_adapter_with_what_is_frozen_beside(
    device: DeviceConfig, base: BasePack
) -> None:
    adapter, frozen = random_adapter(base, LORA), random_adapter(base, LORA)
    for server_round in (1, 2, 3, 4):
        answered(device, question(base, "train", server_round, adapter=adapter, frozen=frozen))
    told = report(device, 1)["adapter"]
    assert told["round"] == 3
    found = read_peft(told["path"]).adapter
    module, pair = next(iter(adapter.pairs.items()))
    assert np.array_equal(found.pairs[module].lora_A, np.concatenate([pair.lora_A, frozen.pairs[module].lora_A]))
    assert len(list(device.adapters.iterdir())) == device.serve.keep


def test_a_factor_that_a_device_keeps_is_in_the_adapter_that_it_uses(device: DeviceConfig, base: BasePack) -> None:
    task, adapter = Task(trains="AB", sends="A"), random_adapter(base, LORA)
    answered(device, question(base, "train", 1, adapter=adapter, task=task))
    answered(device, question(base, "evaluate", 1, adapter=adapter, task=task))
    module = next(iter(adapter.pairs))
    found = read_peft(report(device, 1)["adapter"]["path"]).adapter
    assert np.array_equal(found.pairs[module].lora_A, adapter.pairs[module].lora_A)
    assert not np.array_equal(found.pairs[module].lora_B, adapter.pairs[module].lora_B)


def test_an_adapter_that_cannot_be_written_costs_no_round(device: DeviceConfig, base: BasePack) -> None:
    device.state.mkdir()
    device.adapters.write_text("not a folder")
    given = answered(device, question(base, "evaluate", 4))
    assert not given.said
    assert "was not written" in report(device, 1)["adapter_error"]


@pytest.mark.parametrize("data", [None, b"", b"\0" * 100, b"FLUP\x02\xff\xff\xff\xff"])
def test_bytes_that_are_no_update_are_told_and_remembered(
    device: DeviceConfig, base: BasePack, data: bytes | None
) -> None:
    given = answered(device, dataclasses.replace(question(base), data=data))
    assert given.said
    assert not given.refusal
    assert report(device, 1)["rounds"][-1]["refusal"] == "device-error"


def test_an_unknown_key_of_a_run_is_told(device: DeviceConfig, base: BasePack) -> None:
    asked = question(base)
    given = answered(device, dataclasses.replace(asked, run_config={**asked.run_config, "train.speed": 1}))
    assert "unknown key train.speed" in given.said
