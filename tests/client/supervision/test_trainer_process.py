"""The trainer as a process of its own: asked over its socket, killed, stopped, and started again."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import CourierError
from fedlora_client.answers import answer
from fedlora_client.courier.courier import ask
from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.config import DeviceConfig, read_device
from fedlora_client.service.logs import last_lines
from fedlora_client.service.report import lines, report

from tests.client.service.devices import make_device, question, run_config

Trainer = subprocess.Popen[str]


def started(config: DeviceConfig) -> Trainer:
    return subprocess.Popen(
        [sys.executable, "-m", "fedlora_client.supervision.trainer", str(config.path)],
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(trainer: Trainer) -> str:
    """What it printed."""
    _, errors = trainer.communicate(timeout=60)
    return errors


@contextmanager
def running(config: DeviceConfig) -> Iterator[Trainer]:
    trainer = started(config)
    try:
        yield trainer
    finally:
        if trainer.poll() is None:
            trainer.terminate()
        ended(trainer)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def device(short_path: Path, base: BasePack) -> DeviceConfig:
    return make_device(short_path, base)


def long_question(base: BasePack) -> Question:
    return question(base, config=run_config(base, steps=200))


@pytest.fixture(scope="module")
def undisturbed(base: BasePack, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The numbers of the update that one process makes without a stop."""
    config, asked = make_device(tmp_path_factory.mktemp("twin"), base), long_question(base)
    flat = {**asked.run_config, "data.name": "files"}
    node = {"base": str(base.directory), "data-path": config.data.source, "name": "kitchen"}
    return numbers(answer(dataclasses.replace(asked, run_config=flat), node))


def numbers(given: Answer) -> bytes:
    assert not given.said
    data = bytes(given.data)
    return data[9 + int.from_bytes(data[5:9], "little") :]


def saved(config: DeviceConfig) -> list[Path]:
    return list((config.state / "training").glob("*-round-*.safetensors"))


def test_a_trainer_that_is_killed_goes_on_where_it_was_and_the_courier_waits(
    device: DeviceConfig, base: BasePack, undisturbed: bytes
) -> None:
    answers: list[Answer] = []
    courier = threading.Thread(target=lambda: answers.append(ask(device.device.socket, long_question(base))))
    first = started(device)
    courier.start()
    until(lambda: saved(device))
    first.kill()
    ended(first)
    assert saved(device)
    with running(device):
        courier.join(120)
        (given,) = answers
        told = report(device, 5)
        assert told["running"]
        assert told["rounds"][-1]["bytes_up"] == len(given.data)
    assert numbers(given) == undisturbed
    assert not saved(device)


# Without torch, as Flower starts it.
COURIER = "import pickle, sys; from fedlora_client.courier.courier import ask; ask(*pickle.load(sys.stdin.buffer))"


@pytest.mark.slow
def test_a_courier_that_is_killed_ends_the_training_which_goes_on_when_it_is_asked_for_again(
    device: DeviceConfig, base: BasePack, undisturbed: bytes
) -> None:
    with running(device):
        with subprocess.Popen([sys.executable, "-c", COURIER], stdin=subprocess.PIPE) as courier:
            assert courier.stdin
            courier.stdin.write(pickle.dumps((device.device.socket, long_question(base))))
            courier.stdin.close()
            until(lambda: saved(device))
            courier.kill()
        until(lambda: report(device, 5)["rounds"])
        assert "nobody waits" in report(device, 5)["rounds"][-1]["said"]
        assert saved(device)
        assert numbers(ask(device.device.socket, long_question(base))) == undisturbed


def test_a_trainer_ends_within_seconds_saves_what_it_did_and_is_the_only_one_of_its_device(
    device: DeviceConfig, base: BasePack
) -> None:
    trainer = started(device)
    asked = question(base, config=run_config(base, steps=1_000_000))

    def give_up() -> None:
        with suppress(CourierError):
            ask(device.device.socket, asked)

    courier = threading.Thread(target=give_up, daemon=True)
    courier.start()
    until(lambda: saved(device))
    second = started(device)
    assert f"process {trainer.pid} is this device's trainer already" in ended(second)
    assert second.returncode == 1
    trainer.terminate()
    assert "kitchen ends" in ended(trainer)
    assert trainer.returncode == 0
    assert saved(device)
    assert not Path(device.device.socket).exists()
    assert report(device, 1)["running"] is False
    assert any("kitchen ends" in line for line in last_lines(device.state / "log", 5))


def test_a_device_whose_base_is_damaged_answers_so_at_once_until_it_is_mended(short_path: Path, base: BasePack) -> None:
    config, own = make_device(short_path, base), short_path / "base"
    shutil.copytree(base.directory, own)
    config.path.write_text(config.path.read_text().replace(str(base.directory), str(own)))
    config = read_device(config.path)
    weights = own / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with running(config):
        given = ask(config.device.socket, question(base))
        assert "sha256 is" in given.said
        assert "base.json says" in given.said
        told = report(config, 1)
        assert (told["base_fingerprint"], told["base_error"]) == ("", given.said.removeprefix("device kitchen: "))
        assert told["base_error"] in "\n".join(lines(told))
        weights.write_bytes(whole)
        assert ask(config.device.socket, question(base)).said == ""
        assert report(config, 1)["base_error"] is None
