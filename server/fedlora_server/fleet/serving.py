"""`fedlora server run`: Flower's processes and the run, in the foreground until the run is over or a signal comes."""

from __future__ import annotations

import logging
import logging.handlers
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from fedlora.counted import counted
from fedlora.errors import ConfigError, RunError
from fedlora.files.at_rest import use_key
from fedlora.files.lock_file import hold
from fedlora.fleet.flower_lines import without_colours

from fedlora_server.fleet import commands
from fedlora_server.fleet.authority import WARNING_DAYS, days_left
from fedlora_server.fleet.children import Child, members
from fedlora_server.fleet.chosen_run import Tell, chosen_run
from fedlora_server.fleet.control import control_of, is_up, wait_until_up
from fedlora_server.fleet.current_run import FAILED
from fedlora_server.fleet.devices import changing
from fedlora_server.fleet.flower_app import signed_app, store_app, write_app
from fedlora_server.fleet.registration import register_all
from fedlora_server.fleet.run_log import RunLog
from fedlora_server.fleet.run_watch import RunWatch
from fedlora_server.fleet.settings import FleetSettings

START_S = 180.0  # for SuperLink to answer; it imports for seconds
_TICK_S, _LOOK_S, _LAST_LINES_S = 0.5, 2.0, 5.0
_PORT_S = 5.0
_LOG_BYTES, _LOGS = 4 << 20, 3
_ACCESS = re.compile(r'"[A-Z]+ /\S* HTTP/[0-9.]+" 2\d\d')  # a request that went well
_CALL = re.compile(r"ControlServicer\.\w+\s*$")  # our own questions


def serve_fleet(settings: FleetSettings, changes: Sequence[str], tell: Tell, *, is_new: bool = False) -> bool:
    """Run a fleet's server until its run is over; whether it completed. A signal ends it before: it goes on next time.

    Raises ConfigError before anything is started, RunError where Flower's processes or the run cannot be kept up.
    """
    use_key(settings.at_rest_key)  # and Flower's processes do
    with _alone(settings), _stopping() as stop:
        current = chosen_run(settings, changes, tell, is_new=is_new)
        for name in ("server.crt", "ca.crt"):
            left = days_left(settings.at("tls", name))
            if left < 0:
                raise ConfigError(
                    f"{name} expired {counted(-left, 'day')} ago; renew it: fedlora server rotate {settings.folder}"
                )
            if left <= WARNING_DAYS:
                tell(f"{name} expires in {counted(left, 'day')}; renew it: fedlora server rotate {settings.folder}")
        _check_port(settings)
        write_app(settings.at("app"))
        app = signed_app(settings, int(time.time()))
        store_app(settings, app)
        environment = commands.environment(settings)
        superlink = Child("superlink", commands.superlink(settings), environment, _logged(settings, "superlink"))
        superexec = Child("superexec", commands.superexec(settings), environment, _logged(settings, "superexec"))
        log = RunLog(settings, tell, _logged(settings, "run"))
        try:
            tell(f"SuperLink is being started at {settings.control}")
            superlink.start()
            _wait(settings, superlink, stop)
            with control_of(settings) as control:
                if stop.is_set():
                    return False
                with changing(settings.at("devices.json")) as devices:
                    register_all(control, devices)
                tell(f"SuperLink answers at {settings.control}; {counted(len(devices.current), 'device')} enrolled")
                superexec.start()
                watch = RunWatch(current, settings.at("run.json"), control, app.digest, tell, log)
                watch.begin()
                _keep(settings, superlink, superexec, watch, log, stop, tell)
                log.end(_LAST_LINES_S if watch.is_over else 0.0)
                return watch.is_over
        finally:
            superexec.end()
            superlink.end()


def _keep(
    settings: FleetSettings, superlink: Child, superexec: Child, watch: RunWatch, log: RunLog,
    stop: threading.Event, tell: Tell,
) -> None:  # fmt: skip
    """Until the run is over, or `stop`."""
    look = 0.0
    while not stop.wait(_TICK_S) and not watch.is_over:
        now = time.monotonic()
        log.follow(watch.current.flower_run)
        if not superlink.is_alive:
            if superlink.revive(now):
                tell("SuperLink had ended; it was started again")
                _wait(settings, superlink, stop)
            continue
        if not superexec.is_alive:
            if superexec.revive(now):
                tell("superexec had ended; it was started again")
                watch.lost()
            continue
        if now >= look:
            look = now + _LOOK_S
            try:
                watch.look(len(members(superexec.pid)), now)
            except RunError as error:
                if watch.current.state == FAILED or is_up(settings):
                    raise
                tell(str(error))


def _check_port(settings: FleetSettings) -> None:
    """Raise ConfigError where another process has SuperLink's port. One that was just killed is given time to end."""
    deadline = time.monotonic() + _PORT_S
    while True:
        try:
            with socket.socket(socket.AF_INET6 if ":" in settings.listen else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as SuperLink's own server does
                probe.bind((settings.listen, settings.listen_port))
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{settings.at('server.toml')}: {settings.listen}:{settings.listen_port} cannot be listened at: "
                    f"{error.strerror}; end what has it, or set another listen_port (and port, by which devices come)"
                ) from None
            time.sleep(_TICK_S)


def _wait(settings: FleetSettings, superlink: Child, stop: threading.Event) -> None:
    """Until SuperLink answers. Raises RunError where it does not, or dies for good."""
    deadline = time.monotonic() + START_S
    while not stop.is_set():
        if wait_until_up(settings, 1.0, lambda: stop.is_set() or not superlink.is_alive) and superlink.is_alive:
            return
        superlink.revive(time.monotonic())
        if time.monotonic() > deadline:
            raise RunError(
                f"SuperLink does not answer at {settings.control} after {START_S:g} s; see logs/superlink.log, mend "
                "what it says, and start again"
            )


@contextmanager
def _alone(settings: FleetSettings) -> Iterator[None]:
    """One server at a time in the folder."""
    try:
        lock = hold(settings.at("server.lock"))
    except BlockingIOError:
        raise ConfigError(
            f"{settings.folder}: fedlora server run is at work there; wait for its end, or stop it"
        ) from None
    with lock:
        yield


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _logged(settings: FleetSettings, name: str) -> Tell:
    """What takes lines into logs/NAME.log, which stays within a few files of bounded size."""
    log = logging.Logger(name)
    file = logging.handlers.RotatingFileHandler(
        settings.at("logs", f"{name}.log"), maxBytes=_LOG_BYTES, backupCount=_LOGS, encoding="utf-8"
    )
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)

    def on_line(line: str) -> None:
        plain = without_colours(line)
        if not (_ACCESS.search(plain) or _CALL.search(plain)):
            log.info("%s", plain)

    return on_line
