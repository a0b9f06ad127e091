"""A program of its own: let the warm app do what `flwr-clientapp` is asked, or become `flwr-clientapp` where none is there.

It is started by its path, without fedlora: SOCKET FLWR_CLIENTAPP ARGUMENTS... Nothing but the standard library, and little
of it: this is what a message costs beside its work.
"""

import json
import os
import socket
import sys

_CONNECT_S, _TAKEN_S = 1.0, 5.0


def asked(path: str, arguments: list[str]) -> int | None:
    """The exit code of the work; None where nobody took it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(_CONNECT_S)
            connection.connect(path)
            text = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}).encode()  # noqa: PTH109
            socket.send_fds(connection, [len(text).to_bytes(4, "little")], [1, 2])
            connection.settimeout(_TAKEN_S)
            connection.sendall(text)
            if connection.recv(1) != b"+":
                return None
        except OSError:
            return None
        connection.settimeout(None)
        code = connection.recv(1)
        return code[0] if code else 1  # it was killed


if __name__ == "__main__":
    found = asked(sys.argv[1], sys.argv[3:])
    if found is None:
        os.execv(sys.argv[2], sys.argv[2:])
    sys.exit(found)
