"""Files from a mirror that may be slow, cut off or lying: bounded in bytes by the metadata, and in time here."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import urllib3
from tuf.api.exceptions import DownloadError, SlowRetrievalError
from tuf.ngclient import Urllib3Fetcher

_SOCKET_S, _CHUNK_BYTES = 20, 1 << 16


class BoundedFetcher(Urllib3Fetcher):
    """Gives up at a moment: a mirror that sends a byte now and then keeps within every limit of a single read."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(socket_timeout=max(1, min(_SOCKET_S, round(timeout_s))), app_user_agent="fedlora")
        self._until = time.monotonic() + timeout_s
        self._open: list[urllib3.response.BaseHTTPResponse] = []

    def close(self) -> None:
        """Let go of what was not read to its end."""
        for response in list(self._open):
            response.close()

    def _chunks(self, response: urllib3.response.BaseHTTPResponse) -> Iterator[bytes]:
        self._open.append(response)
        try:
            while True:
                if time.monotonic() > self._until:
                    raise SlowRetrievalError("the mirror is too slow")
                chunk = response.read1(_CHUNK_BYTES)
                if not chunk:
                    break
                yield chunk
        except urllib3.exceptions.TimeoutError as error:
            raise SlowRetrievalError("the mirror is too slow") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:  # cut off in the middle
            raise DownloadError("the mirror broke off") from error
        finally:
            response.close()
            self._open.remove(response)


@contextmanager
def at_most(timeout_s: float) -> Iterator[None]:
    """Raise SlowRetrievalError in the block once the time is over, wherever it waits: for a name, a head, a byte.

    By the process's alarm, in the main thread alone; in others the fetcher's own limits are what there is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise SlowRetrievalError("the mirror is too slow")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
