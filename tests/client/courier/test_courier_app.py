"""The Flower app as a courier: a fresh process takes a message over a socket, and loads nothing that trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.peers import Peers
from fedlora_client.service.socket_server import IsWanted, SocketServer

COURIER = """
import json, sys, time
from fedlora_client.app import app
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

path, kind, age = sys.argv[1], sys.argv[2], float(sys.argv[3])
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, SUPERLINK_NODE_ID
array = Array(dtype="uint8", shape=(3,), stype="fedlora.update", data=b"abc")
message = Message(RecordDict({"update": ArrayRecord({"update": array})}), 1, kind, ttl=30.0)
message.metadata.__dict__["_message_id"] = "message-1"
message.metadata.__dict__["_created_at"] = time.time() - age
node = UserConfig({"socket": path, "name": "kitchen"})
reply = app(message, Context(7, 1, node, RecordDict(), UserConfig({"train.lr": 0.1, "name": "notes"})))
told = {"heavy": sorted({"torch", "tokenizers", "onnxruntime", "fedlora.base.pack"} & set(sys.modules))}
if reply.has_error():
    told["error"] = reply.error.reason
else:
    told["records"] = {name: dict(record) for name, record in reply.content.config_records.items()}
    told["metrics"] = {name: dict(record) for name, record in reply.content.metric_records.items()}
    told["data"] = [a.data.decode() for record in reply.content.array_records.values() for a in record.values()]
print(json.dumps(told))
"""


def carried(kind: str, answer: Answer | None, age_s: float = 0.0) -> tuple[dict[str, object], list[Question]]:
    """What a courier in a process of its own brings back, and what it asked."""
    asked: list[Question] = []
    with tempfile.TemporaryDirectory(prefix="fd-", dir="/tmp") as folder:
        path = Path(folder, "run", "device.sock")
        server = None
        if answer is not None:
            given = answer

            def work(question: Question, is_wanted: IsWanted) -> Answer:
                asked.append(question)
                return given

            server = SocketServer(path, work, peers=Peers.named((), ""), name="kitchen", max_data_bytes=1 << 20)
            threading.Thread(target=server.serve).start()
        try:
            done = subprocess.run(
                [sys.executable, "-c", COURIER, str(path), kind, str(age_s)],
                capture_output=True, text=True, timeout=120, check=False,
                env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"},
            )  # fmt: skip
        finally:
            if server:
                server.stop()
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), asked


def test_an_update_is_carried_both_ways_without_torch() -> None:
    told, (asked,) = carried("train", Answer(device="kitchen", data=b"xyz", metrics={"step_s": 2.0, "other": 1}))
    costs = told.pop("metrics")["costs"]  # type: ignore[index]
    assert set(costs) == {"work_s", "step_s"}, "what it took, and nothing else of what it measured"
    assert told == {"heavy": [], "records": {"device": {"device": "kitchen"}}, "data": ["xyz"]}
    assert (asked.kind, asked.run_id, bytes(asked.data or b"")) == ("train", 7, b"abc")
    assert asked.run_config == {"train.lr": 0.1, "name": "notes"}
    assert 0 < asked.seconds <= 30


def test_a_refusal_comes_with_its_word_and_a_failure_as_an_error() -> None:
    told, _ = carried("evaluate", Answer(device="kitchen", refusal="policy-hours", said="it is 23:10"))
    assert told["records"] == {
        "device": {"device": "kitchen"}, "refusal": {"reason": "policy-hours", "said": "it is 23:10"}
    }  # fmt: skip
    told, _ = carried("evaluate", Answer(device="kitchen", said="no text"))
    assert told["error"] == "device kitchen: no text"


@pytest.mark.parametrize("ahead", [False, True])
def test_a_clock_that_is_wrong_is_told_and_one_that_is_behind_does_not_matter(ahead: bool) -> None:
    told, asked = carried("evaluate", Answer(device="kitchen", metrics={"loss": 1.5}), 600.0 if ahead else -600.0)
    if ahead:
        assert "device kitchen: its time was over 570 s ago, by this device's clock" in str(told["error"])
        assert "set the clock" in str(told["error"])
    else:
        assert told["metrics"] == {"metrics": {"loss": 1.5}}
        assert asked[0].seconds <= 30
