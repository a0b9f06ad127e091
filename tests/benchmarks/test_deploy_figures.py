"""How the figures of the deployment benchmark come out of what processes and records told."""

from __future__ import annotations

import socket
import threading

import pytest

from deploy.counted import CountedPort
from deploy.figures import bytes_over_payload, medians, overheads
from harness.process import WorkerError

RECORDS = [
    {"round": 1, "bytes_down": 40, "bytes_up": 60, "costs": {"a": {"work_s": 5.0, "step_s": 1.5, "step_cpu_s": 0.5}}},
    {"round": 2, "bytes_down": 40, "bytes_up": 60, "costs": {"a": {"work_s": 4.0, "step_s": 1.0, "step_cpu_s": 0.25}}},
    {"round": 3, "bytes_down": 40, "bytes_up": 60, "costs": {"a": {"work_s": 9.0, "step_s": 1.0, "step_cpu_s": 0.25}}},
]


def launches(count: int) -> dict[str, list[dict[str, float]]]:
    return {"a": [{"wall_s": 10.0, "cpu_s": 2.0} for _ in range(count)]}


def test_training_is_no_overhead_and_flowers_share_is_apart() -> None:
    first = next(iter(overheads(RECORDS, launches(3), steps=2)))
    assert (first.flower_s, first.app_s, first.whole_s) == (5.0, 2.0, 7.0)
    found = medians(overheads(RECORDS, launches(3), steps=2))
    assert found == {"whole_s": 8.0, "flower_s": 5.0, "app_s": 2.0, "cpu_s": 1.5}


def test_a_round_without_its_process_is_told() -> None:
    with pytest.raises(WorkerError, match="round 3"):
        list(overheads(RECORDS, launches(2), steps=2))


def test_bytes_are_those_of_the_network_by_those_of_the_adapters() -> None:
    assert bytes_over_payload(RECORDS, 303) == pytest.approx(1.01)
    with pytest.raises(WorkerError):
        bytes_over_payload([], 303)


def test_a_counted_port_passes_on_every_byte_both_ways() -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(1 << 16):
                connection.sendall(piece + b"!" if piece.endswith(b"e") else piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        counted = CountedPort(listener.getsockname()[1])
        said, heard = b"x" * 300_000 + b"e", b""
        with socket.create_connection(("127.0.0.1", counted.port), timeout=30) as device:
            sender = threading.Thread(target=device.sendall, args=(said,))
            sender.start()
            while not heard.endswith(b"!"):
                heard += device.recv(1 << 16)
            sender.join()
        counted.close()
    assert heard == said + b"!"
    assert (counted.up, counted.down, counted.total) == (300_001, 300_002, 600_003)
