"""An engine without a model: a script says what comes of each request, and a thread of its own says it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from fedlora.errors import ConfigError
from fedlora_serve.batching.request import EngineStats, Event, Finished, Piece, Request
from fedlora_serve.errors import BusyError
from fedlora_serve.text.sampling import ChosenToken

Script = Callable[[Request], Iterable[Event]]


class FakeEngine:
    """Follows `script` for every request, with `pause_s` before each event. It keeps what it was asked."""

    def __init__(
        self, script: Script | None = None, *, max_tokens: int = 64, pause_s: float = 0.0, most: int = 1000
    ) -> None:
        """`most` requests are taken at a time; one more is refused."""
        self.script: Script = script or words("one two three")
        self.max_tokens, self.pause_s, self.most = max_tokens, pause_s, most
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.is_closed, self.said_trouble = False, ""
        self._lock = threading.Lock()
        self._cancelling: dict[Request, threading.Event] = {}

    def check_room(self, share: str, count: int) -> None:
        pass

    def submit(self, request: Request) -> None:
        with self._lock:
            error = self._refused(request)
            if error is None:
                self.requests.append(request)
                self._cancelling[request] = threading.Event()
        if error is not None:
            if request.adapter:
                request.adapter.release()
            raise error
        threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def cancel(self, request: Request) -> None:
        with self._lock:
            cancelling = self._cancelling.get(request)
            if cancelling is not None and not cancelling.is_set():
                self.cancelled.append(request)
                cancelling.set()

    def stats(self) -> EngineStats:
        running = list(self._cancelling)
        names = [request.adapter.version.name for request in running if request.adapter]
        return EngineStats(
            running=len(running), waiting=0, rows=16, cache_bytes=1 << 20, cache_budget_bytes=1 << 30, prefix_lookups=100,
            prefix_hits=25, running_adapters={name: names.count(name) for name in names},
        )  # fmt: skip

    def close(self, timeout_s: float) -> None:
        self.is_closed = True
        end = time.monotonic() + timeout_s
        while self._cancelling and time.monotonic() < end:
            time.sleep(0.005)
        for request in list(self._cancelling):
            self.cancel(request)

    @property
    def is_alive(self) -> bool:
        return not self.is_closed

    @property
    def trouble(self) -> str:
        return self.said_trouble

    @property
    def running(self) -> int:
        return len(self._cancelling)

    def _refused(self, request: Request) -> Exception | None:
        if self.is_closed or len(self._cancelling) >= self.most:
            return BusyError("the queue is full: try again later")
        if not request.prompt or len(request.prompt) >= self.max_tokens:
            return ConfigError(f"{len(request.prompt)} tokens leave no room for an answer")
        return None

    def _answer(self, request: Request) -> None:
        cancelling = self._cancelling[request]
        for count, event in enumerate(self.script(request)):
            if cancelling.wait(self.pause_s) if self.pause_s else cancelling.is_set():
                event = Finished(reason="cancelled", completion_tokens=count)
            if isinstance(event, Finished):
                with self._lock:
                    del self._cancelling[request]
                if request.adapter:
                    request.adapter.release()
                request.on_event(event)
                return
            request.on_event(event)
        raise AssertionError("the script has no end")


def token_of(character: str) -> int:
    """A printable character's number in the tests' byte tokenizer, whose vocabulary is sorted."""
    return ord(character) - ord("!")


def words(text: str, *, cached: int = 0, speaker: bool = False) -> Script:
    """A word a piece, a token each, as many as `max_tokens` allows; before them the adapter's name where `speaker`.

    Where log-probabilities are asked for, a word's token is `token_of` its first character, and `top` counts on from it.
    """

    def script(request: Request) -> Iterator[Event]:
        name = request.adapter.version.name if request.adapter else "base"
        said = f"{name}: {text}" if speaker else text
        pieces = [word if not index else f" {word}" for index, word in enumerate(said.split())]
        most = request.sampling.max_tokens
        for count, piece in enumerate(pieces[:most], 1):
            yield Piece(text=piece, completion_tokens=count, tokens=_chosen(piece, request.sampling.logprobs))
        reason = "length" if len(pieces) > most else "stop"
        yield Finished(reason=reason, completion_tokens=min(most, len(pieces)), cached_tokens=cached)  # type: ignore[arg-type]

    return script


def failing(message: str, *, after: str = "") -> Script:
    """Some text, then an error."""

    def script(request: Request) -> Iterator[Event]:
        if after:
            yield Piece(text=after)
        yield Finished(reason="error", completion_tokens=0, message=message)

    return script


def endless(piece: str = "again ") -> Script:
    """A script that repeats one piece until it is cancelled."""

    def script(request: Request) -> Iterator[Event]:
        while True:
            yield Piece(text=piece)

    return script


def _chosen(piece: str, logprobs: int | None) -> tuple[ChosenToken, ...]:
    if logprobs is None:
        return ()
    token = token_of(piece.strip()[0])
    top = tuple((token + index, -0.5 - index) for index in range(logprobs))
    return (ChosenToken(token=token, logprob=-0.5, top=top),)
