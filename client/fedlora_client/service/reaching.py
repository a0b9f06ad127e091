"""What keeps a device from its server: a connection is tried as Flower's SuperNode would make it, and nothing is asked."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

from fedlora_client.service.config import ServerSection

_WAIT_S = 3.0
# Of OpenSSL's verify codes.
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME = 9, 10, (62, 64)


def hindrance(server: ServerSection) -> str:
    """What is wrong and what to do; empty where the server's port answers with a certificate of the fleet's."""
    host, _, port = server.superlink.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=_WAIT_S) as connection:
            if not server.insecure:
                context = ssl.create_default_context(cafile=server.certificates or None)
                with suppress(ssl.SSLEOFError), context.wrap_socket(connection, server_hostname=host):
                    pass
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused: {error.verify_message}; {_advice(error.verify_code)}"
    except ssl.SSLError as error:
        return f"no TLS is spoken there ({error.reason}); correct server.superlink in device.toml"
    except socket.gaierror:
        return f"no machine is called {host}; correct server.superlink in device.toml, or look at the network"
    except ConnectionRefusedError:
        return "nobody listens there; start fedlora server run, or correct server.superlink in device.toml"
    except TimeoutError:
        return f"no answer within {_WAIT_S:g} s; look at the network and at the server's firewall"
    except (OSError, ValueError, OverflowError) as error:
        return (
            f"{getattr(error, 'strerror', None) or error}; look at the network, and at server.superlink in device.toml"
        )
    return ""


def _advice(code: int) -> str:
    if code == _EXPIRED:
        return "renew it on the server (fedlora server rotate), or set this device's clock"
    if code == _NOT_YET_VALID:
        return "set this device's clock"
    if code in _OTHER_NAME:
        return "take one of the names that the server was made with (--host)"
    return "it is not of this device's fleet; join with a bundle of this server"
