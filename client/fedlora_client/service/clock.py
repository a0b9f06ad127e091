"""Whether a device's clock is its server's: SuperLink takes no request that is signed at another time.

Flower's SuperNode signs the time of each request. SuperLink (flwr 1.42, `superlink/routers/fleet/node_auth.py`) answers 401
where that is 5 s or more ahead of its own clock, or 305 s or more behind it, and does not say which it was. So the server
is asked for its time: HTTP tells it in the header `Date` (RFC 9110, 6.6.1), in whole seconds, behind a proxy too.
"""

from __future__ import annotations

import http.client
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from fedlora.counted import counted

from fedlora_client.service.config import ServerSection

AHEAD_S, BEHIND_S = 5.0, 305.0  # that SuperLink lets a device's clock be
_WAIT_S = 3.0
_PATH = "/v1/fleet/"  # what a proxy before SuperLink lets through; nothing is there, and its answer has a date too


def clock_fault(server: ServerSection) -> str:
    """What is wrong with this machine's clock; empty where it is the server's, or the server does not tell its time."""
    try:
        before, told, after = _asked(server)
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    ahead_s, behind_s = before - (told + 1), told - after  # at least: the server's time is in [told, told + 1)
    if ahead_s < AHEAD_S and behind_s < BEHIND_S:
        return ""
    off = f"{_words(ahead_s)} ahead of" if ahead_s > 0 else f"{_words(behind_s)} behind"
    return (
        f"this device's clock is {off} the server's: {_at(after)} here, {_at(told)} there; the server takes a clock that "
        f"is up to {AHEAD_S:g} s ahead or {BEHIND_S:g} s behind: set this device's clock"
    )


def _asked(server: ServerSection) -> tuple[float, float, float]:
    """(before, the server's time, after), in seconds since 1970. Raises OSError, ValueError or HTTPException."""
    host, _, port = server.superlink.rpartition(":")
    host = host.strip("[]")
    connection: http.client.HTTPConnection
    if server.insecure:
        connection = http.client.HTTPConnection(host, int(port), timeout=_WAIT_S)
    else:
        context = ssl.create_default_context(cafile=server.certificates or None)
        connection = http.client.HTTPSConnection(host, int(port), timeout=_WAIT_S, context=context)
    try:
        connection.connect()
        before = time.time()
        connection.request("HEAD", _PATH)
        told = parsedate_to_datetime(connection.getresponse().getheader("Date") or "")
        return before, told.timestamp(), time.time()
    finally:
        connection.close()


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return counted(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"


def _at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
