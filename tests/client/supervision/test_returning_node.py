"""A node that SuperLink does not know to be gone is signed off and comes back; nobody else's is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fedlora_client.supervision.returning_node import NOT_SIGNED, ReturningClient
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message, PushObjectRequest, PushObjectResponse
from flwr.supernode.fleet_http_client import FleetHttpClient

NODE = (1 << 63) + 7


class SuperLink:
    """As flwr 1.42 does: a node is activated only while it is offline."""

    def __init__(self) -> None:
        self.is_online, self.asked = False, list[str]()

    def activate(self, client: Any, request: ActivateNodeRequest) -> ActivateNodeResponse:
        self.asked.append("activate")
        if self.is_online:
            raise refusal()
        self.is_online = True
        return ActivateNodeResponse(node_id=NODE)

    def deactivate(self, client: Any, request: DeactivateNodeRequest) -> None:
        self.asked.append("deactivate")
        if request.node_id != NODE:
            raise refusal()
        self.is_online = False


def refusal(code: int = 412) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://here:1/v1/fleet/activate-node")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(code, request=request))


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    superlink = SuperLink()
    monkeypatch.setattr(FleetHttpClient, "ActivateNode", lambda *given: superlink.activate(*given))
    monkeypatch.setattr(FleetHttpClient, "DeactivateNode", lambda *given: superlink.deactivate(*given))
    return superlink


@pytest.fixture
def client(tmp_path: Path) -> ReturningClient:
    client = object.__new__(ReturningClient)
    client.node_file = tmp_path / "node"
    return client


def test_a_node_that_still_counts_as_online_comes_back_at_once(superlink: SuperLink, client: ReturningClient) -> None:
    assert client.ActivateNode(ActivateNodeRequest()).node_id == NODE
    assert client.node_file.read_text() == f"{NODE}\n"
    superlink.asked.clear()
    assert client.ActivateNode(ActivateNodeRequest()).node_id == NODE, "as after a kill"
    assert superlink.asked == ["activate", "deactivate", "activate"]


@pytest.mark.parametrize("kept", [None, "", "no number", "12"], ids=["nothing", "empty", "text", "another's"])
def test_a_node_whose_number_is_not_known_is_refused_as_before(
    superlink: SuperLink, client: ReturningClient, kept: str | None
) -> None:
    superlink.is_online = True
    if kept is not None:
        client.node_file.write_text(kept)
    with pytest.raises(httpx.HTTPStatusError):
        client.ActivateNode(ActivateNodeRequest())
    assert superlink.is_online
    assert superlink.asked.count("activate") == 1


def test_a_signature_that_is_not_taken_is_told_before_flower_ends(
    client: ReturningClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(client: Any, request: ActivateNodeRequest) -> ActivateNodeResponse:
        raise refusal(401)

    monkeypatch.setattr(FleetHttpClient, "ActivateNode", refuse)
    with pytest.raises(httpx.HTTPStatusError):
        client.ActivateNode(ActivateNodeRequest())
    assert NOT_SIGNED in capsys.readouterr().out


def test_a_disk_that_is_full_costs_only_the_number(superlink: SuperLink, client: ReturningClient) -> None:
    client.node_file = client.node_file.parent / "gone" / "node"
    client.node_file.parent.write_text("a file where its folder would be")
    assert client.ActivateNode(ActivateNodeRequest()).node_id == NODE


def test_an_object_that_is_pushed_again_because_its_acknowledgement_was_lost_is_no_error(
    client: ReturningClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As flwr 1.42's SuperLink: what it has already is "not stored"."""
    kept, is_lost = set[str](), True

    def push(client: Any, request: PushObjectRequest) -> PushObjectResponse:
        is_new = request.object_id not in kept
        kept.add(request.object_id)
        if is_lost:
            raise httpx.ReadError("reset")
        return PushObjectResponse(stored=is_new)

    monkeypatch.setattr(FleetHttpClient, "PushObject", push)
    with pytest.raises(httpx.ReadError):
        client.PushObject(PushObjectRequest(object_id="a"))
    is_lost = False
    assert client.PushObject(PushObjectRequest(object_id="a")).stored
    assert client.PushObject(PushObjectRequest(object_id="b")).stored
    assert not client.PushObject(PushObjectRequest(object_id="b")).stored, "nobody lost anything: that is an error"


class Lossy:
    """As flwr 1.42's SuperLink: a message is given out once, and a heartbeat brings back a node that is offline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self.fails, self.is_online, self.came = ["question"], list[Exception](), True, 0
        for name in ("PullMessages", "DeactivateNode", "SendNodeHeartbeat"):
            monkeypatch.setattr(FleetHttpClient, name, lambda client, request, name=name: getattr(self, name)(request))

    def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
        answer = PullMessagesResponse(messages_list=[Message() for _ in self.waiting])
        self.waiting.clear()
        if self.fails:
            raise self.fails.pop(0)
        return answer

    def DeactivateNode(self, request: DeactivateNodeRequest) -> None:  # noqa: N802
        if not self.is_online:
            raise refusal()
        self.is_online = False

    def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:  # noqa: N802
        self.came += not self.is_online
        self.is_online = True
        return SendNodeHeartbeatResponse(success=True)


def test_a_node_whose_message_may_have_been_lost_on_its_way_goes_and_comes_once(
    client: ReturningClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = Lossy(monkeypatch)
    superlink.fails = [httpx.ReadError("cut")]
    with pytest.raises(httpx.ReadError):
        client.PullMessages(PullMessagesRequest())
    for _ in range(3):
        assert not client.PullMessages(PullMessagesRequest()).messages_list
    assert superlink.came == 1


def test_a_node_that_lost_nothing_stays(client: ReturningClient, monkeypatch: pytest.MonkeyPatch) -> None:
    superlink = Lossy(monkeypatch)
    superlink.fails = [httpx.ConnectError("nobody is there")]
    with pytest.raises(httpx.ConnectError):
        client.PullMessages(PullMessagesRequest())
    client.PullMessages(PullMessagesRequest())
    superlink.fails = [httpx.ReadError("reset")]
    with pytest.raises(httpx.ReadError):
        client.PullMessages(PullMessagesRequest())
    superlink.waiting = ["the message is there all the same"]
    assert client.PullMessages(PullMessagesRequest()).messages_list
    client.PullMessages(PullMessagesRequest())
    assert superlink.came == 0
