"""What a device's link says, in a few words of ours: whether it is connected, and what keeps it from that."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from fedlora.fleet.flower_lines import without_colours

from fedlora_client.service.state import StateFolder, now_text

log = logging.getLogger("fedlora.device")

CONNECTED = "connected"
_LEVEL = re.compile(r"^([A-Z]+) *: +")  # "WARNING :   text"
_FAILED = ("Connection attempt failed", "CERTIFICATE_VERIFY_FAILED")
_ANSWERED = ("SuperNode ID:", "Receiving:")
_AGAIN = "Connection successful"  # to the server, or to a process of Flower's own on this machine
_LOST = ("Failed to receive message", "Failed to send message")
_LEFT_OVER = "status. Ignoring message "  # its run ended while it was received
_HALF_INSTALLED = "LoadClientAppError"  # of the app process
_FULL = "No space left on device"
_NOT_KNOWN = "Failed to activate SuperNode"
_NOT_SIGNED = "SuperLink does not take this signature"  # of `returning_node.py`: it is of another key, or another time


def plain(line: str) -> str:
    """A line of Flower's without colours and columns."""
    return _LEVEL.sub(r"\1 ", without_colours(line)).rstrip()


def needs_a_new_start(line: str) -> bool:
    """Whether the SuperNode of flwr 1.42 says what it does not get over by itself.

    It let go of a question or an answer, of which its server knows nothing. Or it ignores a question that its app works on
    all the same: the answer stays, is given out in the place of the next one, and from then on each is one too late.
    """
    return _LEFT_OVER in line or any(words in line for words in _LOST)


def may_have_installed_half(line: str) -> bool:
    """Whether Flower's copy of the app may be incomplete: flwr 1.42 keeps what a full disk cut short as it is."""
    return _FULL in line or _HALF_INSTALLED in line


@dataclass(slots=True)
class LinkWords:
    """Hears the lines of Flower's SuperNode; tells only what has changed, and keeps it for `fedlora device status`."""

    superlink: str
    state: StateFolder
    hindrance: Callable[[], str]  # tried where Flower says that it cannot connect, which does not say why
    clock_fault: Callable[[], str]  # looked for where SuperLink refuses a signature
    _said: str = field(default="")

    def hear(self, line: str) -> bool:
        """Whether the line says that the server has answered."""
        if _FULL in line:
            self._tell(f"the disk of {self.state.path} is full, and no question can be answered; make room there")
        elif any(words in line for words in _FAILED):
            hindrance = self.hindrance()
            if hindrance:  # else it is a process of Flower's own on this machine that it waits for
                self._tell(f"{self.superlink} cannot be reached: {hindrance}; it is tried until it can")
        elif _NOT_KNOWN in line or _NOT_SIGNED in line:
            fault = self.clock_fault() if _NOT_SIGNED in line else ""
            self._tell(f"{self.superlink} refuses this device: {fault}" if fault else self._unknown_key())
        elif any(words in line for words in _ANSWERED):
            self._tell(CONNECTED)
            return True
        elif self._said != CONNECTED and _AGAIN in line and not self.hindrance():
            self._tell(CONNECTED)
        return False

    def _unknown_key(self) -> str:
        return (
            f"{self.superlink} does not take this device's key: it was revoked, or is not enrolled there; join with a "
            "bundle of that server (a device that was cut off as it came is taken again within a minute)"
        )

    def _tell(self, said: str) -> None:
        if said == self._said:
            return
        self._said = said
        if said == CONNECTED:
            log.info("link: connected to %s", self.superlink)
        else:
            log.warning("link: %s", said)
        self.state.write("link", {"said": said, "at": now_text()})
