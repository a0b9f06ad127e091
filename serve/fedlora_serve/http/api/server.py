"""A service on a socket, until it is told to stop: then it finishes what it has begun, for a while.

SIGTERM and SIGINT close the socket, let running answers go on for `shutdown_timeout_s`, cancel the rest (their clients get
the end of the answer, marked as cancelled), and end the process with 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from fedlora.errors import ConfigError
from starlette.types import ASGIApp

from fedlora_serve.http.api.app import create_app
from fedlora_serve.http.api.metrics import CountResponses
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.http.transport.allowed_origins import with_allowed_origins
from fedlora_serve.http.transport.body_limit import BodyLimit
from fedlora_serve.http.transport.client_connection import SendLimit
from fedlora_serve.http.transport.connection import bounded_connection
from fedlora_serve.http.transport.head_limit import HeadLimit
from fedlora_serve.http.transport.host_check import HostCheck

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SWITCH_INTERVAL_S = 0.001  # that a thread goes on while another waits for its turn: Python's own 5 ms are a whole step
_GRACE_S = 5  # for cancelled answers to reach their clients


def bind(host: str, port: int) -> socket.socket:
    """A socket for the server; nothing listens yet. Raises ConfigError for an address that is taken or not ours."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen on {host}, port {port}: {error.strerror or error}; name another --port or --host"
    )


def guarded_app(service: ServiceState, *, for_this_machine: bool = False, allow_origin: Sequence[str] = ()) -> ASGIApp:
    """The application with its bounds of heads, bodies and sends, its answers counted, for pages of these origins too."""
    app: ASGIApp = HeadLimit(BodyLimit(create_app(service), service.limits), service.limits.max_header_bytes)
    app = with_allowed_origins(app, allow_origin)  # within the check of the host, which a page cannot get around
    app = CountResponses(HostCheck(app) if for_this_machine else app, service.metrics)
    return SendLimit(app, service.limits.send_timeout_s)


def serve(
    service: ServiceState, config: ServeConfig, bound: socket.socket, when_ready: Callable[[], None] = lambda: None
) -> None:
    """Answer requests that come to `bound` until a signal comes, then close the service. Returns when all has ended."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()  # what is here stays: going through all of it stops every thread for as long
    gc.set_threshold(10_000, 20, 50)  # and a request of a hundred thousand values is no reason to begin
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what strangers send is no warning
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    server = make_server(
        service,
        access_log=config.access_log,
        for_this_machine=config.is_for_this_machine,
        allow_origin=config.allow_origin,
        when_ready=when_ready,
    )
    server.run(sockets=[bound])


def make_server(
    service: ServiceState,
    *,
    access_log: bool = False,
    for_this_machine: bool = False,
    allow_origin: Sequence[str] = (),
    when_ready: Callable[[], None] = lambda: None,
) -> GracefulServer:
    """A server of the service, within its limits."""
    limits = service.limits
    config = uvicorn.Config(
        guarded_app(service, for_this_machine=for_this_machine, allow_origin=allow_origin),
        http=bounded_connection(limits.max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_timeout_s,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_graceful_shutdown=math.ceil(limits.shutdown_timeout_s) + _GRACE_S,
    )
    return GracefulServer(config, service, when_ready)


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which closes the service with itself and ends with 0."""

    def __init__(self, config: uvicorn.Config, service: ServiceState, when_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._when_ready = service, when_ready
        self._requests_over = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for bound in sockets or ():
            try:
                bound.listen(self.config.backlog)  # another process may have been faster since it was bound
            except OSError as error:
                host, port, *_ = bound.getsockname()
                raise _cannot_listen(host, port, error) from None
        await super().startup(sockets)
        self._when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(asyncio.to_thread(self._close))
        await super().shutdown(sockets)
        self._requests_over.set()
        await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        yield
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.should_exit = True
        for number in _SIGNALS:  # the next one ends the process
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    def _close(self) -> None:
        if self._service.releases is not None:
            self._service.releases.close()
        if self._service.engine is not None:
            self._service.engine.close(self._service.limits.shutdown_timeout_s)
        if self._service.encoder is not None:
            self._requests_over.wait(self._service.limits.shutdown_timeout_s)
            self._service.encoder.watch.close(0)
        if self._service.adapter_folder is not None:
            self._service.adapter_folder.close()
