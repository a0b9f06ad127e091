"""What a link says is told once for each change, with the reason that Flower does not give."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fedlora_client.service.state import StateFolder
from fedlora_client.supervision.link_words import LinkWords, may_have_installed_half, needs_a_new_start, plain
from fedlora_client.supervision.returning_node import NOT_SIGNED

RETRY = "WARNING Connection attempt failed, retrying in 0.39 seconds"


def test_lines_of_flowers_lose_their_colours_and_columns() -> None:
    assert plain("\x1b[93mWARNING \x1b[0m:   Connection attempt failed") == "WARNING Connection attempt failed"
    assert plain("\x1b[92mINFO \x1b[0m:      ") == "INFO"
    assert plain("no level: here") == "no level: here"


@pytest.mark.parametrize(
    ("line", "needs_it"),
    [
        ("ERROR Failed to send message 6a: Failed to push object with ID '1174'", True),
        ("ERROR Failed to receive message 6a: no object", True),
        ("INFO Run ID 7 is not in `RUNNING` status. Ignoring message c987.", True),
        ("INFO Run ID 7 is not in `RUNNING` status. Ignoring reply message c987.", False),  # it is gone
        ("INFO Run transitioned to a non-`RUNNING` status while receiving a message. Ignoring the message.", False),
        ("INFO Sending: train message (ID: 6a)", False),
    ],
)
def test_what_a_supernode_does_not_get_over_is_heard(line: str, needs_it: bool) -> None:
    assert needs_a_new_start(line) == needs_it


def test_a_full_disk_is_told_and_what_was_installed_half_is_heard(tmp_path: Path) -> None:
    words = LinkWords("here:1", StateFolder(tmp_path), lambda: "", lambda: "")
    line = "OSError: [Errno 28] No space left on device: '/tmp/x/pyproject.toml' -> '/state/flwr/apps/x/pyproject.toml'"
    words.hear(line)
    assert f"the disk of {tmp_path} is full" in StateFolder(tmp_path).read("link")["said"]
    assert may_have_installed_half(line)
    assert may_have_installed_half("flwr.clientapp.utils.LoadClientAppError: the app is not there")
    assert not may_have_installed_half("INFO Start `flwr-clientapp` process")


def test_only_changes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reasons = ["nobody listens there", "nobody listens there", "", "no answer", ""]
    words = LinkWords("here:1", StateFolder(tmp_path), lambda: reasons.pop(0), lambda: "")
    told: list[str] = []
    with caplog.at_level(logging.INFO, "fedlora.device"):
        for line, state in (
            (RETRY, "here:1 cannot be reached: nobody listens there; it is tried until it can"),
            (RETRY, "here:1 cannot be reached: nobody listens there; it is tried until it can"),
            (RETRY, "here:1 cannot be reached: nobody listens there; it is tried until it can"),  # of another process
            ("INFO SuperNode ID: 4711", "connected"),
            ("INFO Receiving: train message (ID: 1)", "connected"),
            (RETRY, "here:1 cannot be reached: no answer; it is tried until it can"),
            ("INFO Connection successful after 8.77 seconds and 5 tries.", "connected"),
            ("[code: 2004] Failed to activate SuperNode.", "does not take this device's key"),
        ):
            words.hear(line)
            assert state in StateFolder(tmp_path).read("link")["said"]
        told = [record.message for record in caplog.records]
    assert len(told) == 5
    assert told[1] == "link: connected to here:1"


def test_a_connection_within_the_machine_is_none_to_the_server(tmp_path: Path) -> None:
    words = LinkWords("here:1", StateFolder(tmp_path), lambda: "nobody listens there", lambda: "")
    words.hear("INFO Connection successful after 1.00 seconds and 2 tries.")
    assert StateFolder(tmp_path).read("link") == {}


def test_a_signature_that_is_refused_is_told_with_the_clocks_fault_or_as_an_unknown_key(tmp_path: Path) -> None:
    faults = ["this device's clock is 10 minutes ahead of the server's", ""]
    words = LinkWords("here:1", StateFolder(tmp_path), lambda: "", lambda: faults.pop(0))
    refused = f"{NOT_SIGNED}: Client error '401 Unauthorized' for url 'https://here:1/v1/fleet/activate-node'"
    for told in ("here:1 refuses this device: this device's clock is 10 minutes", "does not take this device's key"):
        words.hear(refused)
        assert told in StateFolder(tmp_path).read("link")["said"]
