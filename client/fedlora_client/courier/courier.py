"""The courier: it takes a question to the device service over its socket, and waits for the answer.

A service that is not there, or goes away in the middle, is one that is being started again: it is asked again until the
time is over, and goes on with a training where it was saved.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import replace

from fedlora.errors import CourierError

from fedlora_client.courier.frames import receive_frame, send_frame
from fedlora_client.courier.question import Answer, Question

MAX_PATH_BYTES = 107  # of a Unix socket's name, on Linux
_MARGIN_S, _SHARE = 5.0, 0.1  # of the time, left for the answer's way back
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_FINAL = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR)  # no start of a service changes these


def ask(path: str, question: Question) -> Answer:
    """The service's answer. Raises CourierError where there is none in time, or could never be one."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise CourierError(f"socket {path}: a socket's path has at most {MAX_PATH_BYTES} bytes; name a shorter one")
    began = time.monotonic()
    deadline = began + question.seconds - min(_MARGIN_S, _SHARE * question.seconds)
    pause, why = _FIRST_PAUSE_S, "no time was left"
    while (left := deadline - time.monotonic()) > 0:
        try:
            return _answer(path, replace(question, seconds=left))
        except CourierError as error:
            why = str(error)
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno in _FINAL:
                raise CourierError(
                    f"the device service at {path} cannot be reached: {why}; give the courier's user access to its socket"
                ) from None
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    raise CourierError(
        f"the device service at {path} gave no answer in {time.monotonic() - began:.0f} s: {why}; start it: fedlora device "
        "run"
    )


def _answer(path: str, question: Question) -> Answer:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(question.seconds)
        connection.connect(path)
        data = question.data or b""
        send_frame(connection, question.header(), data, question.seconds)
        return Answer.read(*receive_frame(connection, question.seconds))
