"""The socket between courier and device service: real sockets, hostile frames, peers that vanish."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fedlora.errors import ConfigError, CourierError
from fedlora_client.courier.courier import ask
from fedlora_client.courier.frames import MAX_HEADER_BYTES, receive_frame, send_frame
from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.peers import Peers
from fedlora_client.service.socket_server import IsWanted, SocketServer, Work

MAX_DATA = 1 << 22


def question(seconds: float = 30.0, data: bytes | None = b"update", **run_config: int) -> Question:
    return Question(kind="train", run_config={"seed": 1, **run_config}, run_id=7, seconds=seconds, data=data)


def echo(asked: Question, is_wanted: IsWanted) -> Answer:
    return Answer(device="kitchen", data=bytes(asked.data or b""), metrics={"loss": 0.5, "seed": float(asked.run_id)})


@contextmanager
def serving(path: Path, work: Work = echo, busy_s: float = 30.0, peers: Peers | None = None) -> Iterator[SocketServer]:
    peers = peers or Peers.named((), "")
    server = SocketServer(path, work, peers=peers, name="kitchen", max_data_bytes=MAX_DATA, busy_s=busy_s)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert not path.exists()


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "run" / "device.sock"


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))  # waits for its turn, which it would not with a time limit
    connection.settimeout(30)
    return connection


def test_an_answer_comes_back_as_it_was_given(path: Path) -> None:
    data = random.Random(1).randbytes(MAX_DATA)
    with serving(path):
        answer = ask(str(path), question(data=data))
        assert (answer.device, bytes(answer.data), answer.metrics) == ("kitchen", data, {"loss": 0.5, "seed": 7.0})
        assert (answer.refusal, answer.said) == ("", "")
        assert bytes(ask(str(path), question(data=None)).data) == b""


def test_the_socket_is_its_users_alone(path: Path) -> None:
    with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match=r"open to others .mode 755."), serving(path):
        pass
    path.parent.chmod(0o700)
    path.write_text("something of somebody's")
    with pytest.raises(ConfigError, match="something else than a socket"), serving(path):
        pass
    assert path.read_text() == "something of somebody's"


def test_a_path_too_long_for_a_socket_is_told_at_both_ends(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120) / "device.sock"
    with pytest.raises(ConfigError, match="at most 107 bytes"), serving(long):
        pass
    with pytest.raises(CourierError, match="at most 107 bytes"):
        ask(str(long), question())


def test_a_user_who_is_not_named_is_refused_by_the_kernels_word(path: Path) -> None:
    with serving(path, peers=Peers(frozenset({os.getuid() + 1}))):
        answer = ask(str(path), question())
    assert f"user {os.getuid()} may not ask this device" in answer.said


def test_a_group_that_is_named_may_ask(path: Path) -> None:
    with serving(path, peers=Peers(frozenset(), os.getgid())):
        assert path.stat().st_mode & 0o777 == 0o660
        assert not ask(str(path), question()).said


@pytest.mark.parametrize(
    ("users", "group"),
    [
        (("nobody-here-99",), ""),
        ((), "no-such-group-99"),
        (("\0",), ""),
        ((), "\0"),
        ((), "4294967295"),
        (("9" * 5000,), ""),
    ],
)
def test_a_user_or_group_that_the_machine_does_not_know_is_told(users: tuple[str, ...], group: str) -> None:
    with pytest.raises(ConfigError, match="this machine has no"):
        Peers.named(users, group)


def frame(header: bytes, data: bytes = b"", *, magic: bytes = b"FLDV", version: int = 1) -> bytes:
    return struct.pack("<4sB3xIQ", magic, version, len(header), len(data)) + header + data


SOUND = b'{"kind": "train", "run_config": {}, "run_id": 1, "seconds": 5, "has_data": false}'


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (frame(SOUND, magic=b"HTTP"), "expected b'FLDV'"),
        (frame(SOUND, version=9), "version 9"),
        (struct.pack("<4sB3xIQ", b"FLDV", 1, 1 << 31, 0), "at most"),
        (struct.pack("<4sB3xIQ", b"FLDV", 1, 10, 1 << 63), "at most"),
        (struct.pack("<4sB3xIQ", b"FLDV", 1, 10, MAX_DATA + 1), "at most"),
        (frame(b"not json"), "not JSON"),
        (frame(b"[" * 100_000), "not JSON"),
        (frame(b"[]"), "expected a JSON object"),
        (frame(b"{}"), "run_config"),
        (frame(SOUND.replace(b'"train"', b'"destroy"')), "expected one of train, evaluate"),
        (frame(SOUND.replace(b'"seconds": 5', b'"seconds": NaN')), "finite"),
        (frame(SOUND.replace(b'"seconds": 5', b'"seconds": 1e999')), "finite"),
        (frame(SOUND.replace(b'"run_config": {}', b'"run_config": {"a": [1]}')), "run_config"),
        (frame(SOUND.replace(b'"run_id": 1', b'"run_id": "1"')), "run_id"),
    ],
)
def test_a_hostile_frame_is_told_and_the_next_question_answered(path: Path, sent: bytes, told: str) -> None:
    with serving(path):
        with connected(path) as connection:
            connection.sendall(sent)
            header, _ = receive_frame(connection, 30)
        assert told in header["said"]
        assert not ask(str(path), question()).said


def test_no_bytes_end_the_service(path: Path) -> None:
    drawn = random.Random(7)
    sound = frame(SOUND, b"x" * 200)
    with serving(path):
        for _ in range(150):
            damaged = bytearray(sound)
            for _ in range(drawn.randrange(1, 6)):
                damaged[drawn.randrange(len(damaged))] = drawn.randrange(256)
            with connected(path) as connection, suppress(OSError):
                connection.sendall(damaged[: drawn.randrange(len(damaged) + 1)])
                if drawn.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
        assert not ask(str(path), question()).said


def test_more_connections_than_are_held_are_closed_and_nobody_is_lost(path: Path) -> None:
    with serving(path):
        idle = [connected(path) for _ in range(12)]
        for connection in idle:
            connection.close()
        assert not ask(str(path), question()).said


def test_a_courier_that_dies_ends_the_work(path: Path) -> None:
    began, ended = threading.Event(), threading.Event()

    def work(asked: Question, is_wanted: IsWanted) -> Answer:
        if asked.run_id != 7 or asked.run_config.get("quick"):
            return Answer(device="kitchen")
        began.set()
        while is_wanted():
            time.sleep(0.01)
        ended.set()
        return Answer(device="kitchen")

    with serving(path, work):
        connection = connected(path)
        send_frame(connection, question(600).header(), b"update", 30)
        assert began.wait(30)
        connection.close()
        assert ended.wait(30)
        assert not ask(str(path), question(quick=1)).said


def test_one_question_is_worked_on_at_a_time_and_others_wait_or_are_told(path: Path) -> None:
    began, free, at_once, most = threading.Event(), threading.Event(), [0], [0]

    def work(asked: Question, is_wanted: IsWanted) -> Answer:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        began.set()
        free.wait(30)
        at_once[0] -= 1
        return Answer(device="kitchen")

    answers: list[Answer] = []
    with serving(path, work, busy_s=0.3):
        first = threading.Thread(target=lambda: answers.append(ask(str(path), question())))
        first.start()
        assert began.wait(30)
        assert ask(str(path), question()).said == "busy with another question"
        second = threading.Thread(target=lambda: answers.append(ask(str(path), question())))
        second.start()
        free.set()
        first.join(30)
        second.join(30)
    assert most == [1]
    assert answers[0].said == ""


def test_work_that_fails_is_told_and_the_next_is_done(path: Path) -> None:
    def work(asked: Question, is_wanted: IsWanted) -> Answer:
        if asked.run_config.get("fails"):
            raise MemoryError("no room")
        return Answer(device="kitchen")

    with serving(path, work):
        assert ask(str(path), question(fails=1)).said == "MemoryError: no room"
        assert not ask(str(path), question()).said


def test_a_courier_waits_for_a_service_that_starts_later_and_asks_again_one_that_stops(path: Path) -> None:
    began = threading.Event()

    def never(asked: Question, is_wanted: IsWanted) -> Answer:
        began.set()
        while is_wanted():
            time.sleep(0.01)
        return Answer(device="kitchen", said="nobody waits")

    answers: list[Answer] = []
    courier = threading.Thread(target=lambda: answers.append(ask(str(path), question(60))))
    courier.start()
    with serving(path, never):
        assert began.wait(30)
    with serving(path):
        courier.join(30)
    assert [answer.device for answer in answers] == ["kitchen"]
    assert bytes(answers[0].data) == b"update"


def test_a_courier_without_a_service_says_so_before_the_round_is_over(path: Path) -> None:
    with pytest.raises(CourierError, match=r"gave no answer in .*: No such file or directory; start it"):
        ask(str(path), question(0.5))


def test_an_answer_that_is_none_is_no_answer(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def babble() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nServer: somebody\r\n\r\n")

        threading.Thread(target=babble, daemon=True).start()
        with pytest.raises(CourierError, match="gave no answer"):
            ask(str(path), question(1.0))
        listener.shutdown(socket.SHUT_RDWR)


def test_a_header_beyond_its_bound_is_not_sent() -> None:
    here, there = socket.socketpair()
    with here, there, pytest.raises(CourierError, match="at most"):
        send_frame(here, {"said": "x" * MAX_HEADER_BYTES}, b"", 1)
    here, there = socket.socketpair()
    with here, there, pytest.raises(CourierError, match="no JSON"):
        send_frame(here, {"loss": float("nan")}, b"", 1)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "1e400", "1" + "0" * 400, "-1" + "0" * 4000, "true", '"8"', "null"]
)
def test_a_number_that_is_none_is_told_at_both_ends(path: Path, number: str) -> None:
    asked = json.loads(json.dumps(question().header() | {"seconds": "HERE"}).replace('"HERE"', number))
    with pytest.raises(CourierError, match=r"seconds: .*; expected a finite number"):
        Question.read(asked, bytearray())
    given = Answer(device="kitchen", metrics={"loss": 0.5}).header()
    given["metrics"] = {"loss": json.loads(number)}
    with pytest.raises(CourierError, match="expected"):
        Answer.read(given, bytearray())
    header = json.dumps(question(data=None).header() | {"seconds": "HERE"}).replace('"HERE"', number).encode()
    with serving(path), connected(path) as connection:
        connection.sendall(struct.pack("<4sB3xIQ", b"FLDV", 1, len(header), 0) + header)
        answer = Answer.read(*receive_frame(connection, 30.0))
        assert "the question cannot be read: seconds: " in answer.said
