"""A round lets go of what a device sent once it is added: its memory does not grow with the number of devices."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
from fedlora_server.intake import Asked, Intake
from fedlora_server.means.weighted_sum import AT_ONCE
from fedlora_server.replies import Reply

from tests.server.fake_grid import FakeGrid, Honest, Player


class Sent(bytearray):
    """Bytes that tell whether anybody still has them; `bytes` themselves cannot."""


@pytest.mark.parametrize("method", ["fedavg", "hetlora"])
def test_a_round_holds_a_few_updates_however_many_devices_answer(
    play: Player, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    gc.freeze()  # what the tests before left
    take, sent, most = Intake.take, list[weakref.ref[Sent]](), 0

    def watched(self: Intake, reply: Reply, asked: Asked, factor: float = 1.0) -> bool:
        nonlocal most
        data = Sent(reply.data)
        sent.append(weakref.ref(data))
        taken = take(self, dataclasses.replace(reply, data=data), asked, factor)  # type: ignore[arg-type]
        del data, reply
        gc.collect()
        most = max(most, sum(one() is not None for one in sent))
        return taken

    monkeypatch.setattr(Intake, "take", watched)
    devices = {node: Honest(node) for node in range(1, 5 * AT_ONCE)}
    played = play.soundly(FakeGrid(devices), method=method, evaluate=False)
    assert played.metrics[1]["replies"] == len(devices)
    assert len(sent) >= len(devices) > AT_ONCE >= most
