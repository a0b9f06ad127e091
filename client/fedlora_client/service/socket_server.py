"""The socket of a device service: one question is worked on at a time, and no peer can end the service."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlora.errors import ConfigError, CourierError

from fedlora_client.courier.courier import MAX_PATH_BYTES
from fedlora_client.courier.frames import has_hung_up, receive_frame, send_frame
from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.peers import Peers

log = logging.getLogger("fedlora.device")

IsWanted = Callable[[], bool]
Work = Callable[[Question, IsWanted], Answer]

_QUESTION_S, _ANSWER_S = 60.0, 120.0  # for a frame to be whole
_LONGEST_S = 7 * 24 * 3600.0  # that anybody may wait for an answer
_CONNECTIONS, _BACKLOG = 8, 64
_LOOK_S = 0.2


class SocketServer:
    """Listens, checks who asks, and hands questions to `work`, which asks again and again whether it is still wanted."""

    def __init__(
        self, path: Path, work: Work, *, peers: Peers, name: str, max_data_bytes: int, busy_s: float = 30.0
    ) -> None:
        """`busy_s`: how long a question waits for another one's end. Raises ConfigError where it cannot listen there."""
        self._path, self._work, self._peers, self._name = path, work, peers, name
        self._max_data_bytes, self._busy_s = max_data_bytes, busy_s
        self._working, self._stopping = threading.Lock(), threading.Event()
        self._connections = threading.Semaphore(_CONNECTIONS)
        self._listener = _listener(path, peers.group)

    def serve(self) -> None:
        """Answer until `stop` is called; the socket is then gone."""
        try:
            self._listener.settimeout(_LOOK_S)
            while not self._stopping.is_set():
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # of too many files: others will be closed
                    log.warning("a connection was not taken: %s", error.strerror)
                    self._stopping.wait(_LOOK_S)
                    continue
                if self._connections.acquire(blocking=False):
                    threading.Thread(target=self._handle, args=(connection,), daemon=True).start()
                else:
                    connection.close()
        finally:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    def stop(self) -> None:
        """End soon: what is worked on is told that nobody wants it. May be called in a signal's handler."""
        self._stopping.set()

    @property
    def is_working(self) -> bool:
        return self._working.locked()

    def _handle(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except (OSError, CourierError) as error:
            log.warning("a courier was not answered: %s", error)
        except Exception:  # whatever a stranger's bytes did: the next one is answered
            log.exception("a connection failed")
        finally:
            self._connections.release()

    def _answer(self, connection: socket.socket) -> None:
        if refusal := self._peers.refusal(connection):
            log.warning("refused: %s", refusal)
            self._send(connection, self._failure(refusal))
            return
        try:
            frame = receive_frame(connection, _QUESTION_S, max_data_bytes=self._max_data_bytes)
            question = Question.read(*frame)
        except CourierError as error:
            log.warning("a question cannot be read: %s", error)
            self._send(connection, self._failure(f"the question cannot be read: {error}"))
            return
        deadline = time.monotonic() + min(question.seconds, _LONGEST_S)

        def is_wanted() -> bool:
            return not self._stopping.is_set() and time.monotonic() < deadline and not has_hung_up(connection)

        with self._turn(is_wanted) as has_turn:
            answer = self._worked(question, is_wanted) if has_turn else self._failure("busy with another question")
            if is_wanted():  # otherwise hanging up tells a courier, if it is there, to ask again
                self._send(connection, answer)

    @contextmanager
    def _turn(self, is_wanted: IsWanted) -> Iterator[bool]:
        """Whether it is this question's turn, before too long."""
        until, has_turn = time.monotonic() + self._busy_s, False
        while not has_turn and is_wanted() and time.monotonic() < until:
            has_turn = self._working.acquire(timeout=_LOOK_S)
        try:
            yield has_turn
        finally:
            if has_turn:
                self._working.release()

    def _worked(self, question: Question, is_wanted: IsWanted) -> Answer:
        try:
            return self._work(question, is_wanted)
        except BaseException as error:  # a library's panic, memory that is not there: it costs this round
            log.exception("the work failed")
            return self._failure(f"{type(error).__name__}: {error}")

    def _failure(self, said: str) -> Answer:
        return Answer(device=self._name, said=said)

    def _send(self, connection: socket.socket, answer: Answer) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            send_frame(connection, answer.header(), answer.data, _ANSWER_S)


def _listener(path: Path, group: int | None) -> socket.socket:
    """A socket that only this user, and the group, can open, in a folder that is only theirs."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"device.socket: {path}: a socket's path has at most {MAX_PATH_BYTES} bytes; name a shorter one"
        )
    mode = 0o660 if group is not None else 0o600
    _check_folder(path.parent, group)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(f"device.socket: {path} is something else than a socket; name another path")
            path.unlink()  # one that a killed service left: the state's lock says that none is alive
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"device.socket: {path}: {error.strerror}; name another path") from None
    except ConfigError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _check_folder(folder: Path, group: int | None) -> None:
    """Make the socket's folder, or see that nobody else can put another socket there."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            if group is not None:
                os.chown(folder, -1, group)
                folder.chmod(0o750)
        status = folder.stat()
    except OSError as error:
        raise ConfigError(f"device.socket: {folder}: {error.strerror}; name a path in a folder of your own") from None
    others = stat.S_IMODE(status.st_mode) & (0o027 if group is not None else 0o077)
    if status.st_uid != os.getuid() or others:
        raise ConfigError(
            f"device.socket: {folder} is open to others (mode {stat.S_IMODE(status.st_mode):o}); make it yours alone "
            f"(chmod {'750' if group is not None else '700'}), or name another folder"
        )
