"""What a hub or a registry answers while a release is published: bounded in bytes, in their number and in time.

Their clients read every answer whole, follow every next page, and wait without end. What is said of a release is a few
kilobytes; a place that lies costs an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAX_ANSWER_BYTES, MAX_BYTES, MAX_ANSWERS = 4 << 20, 32 << 20, 2000  # of one answer, of all, of one publication
_SILENCE_S, _ANSWER_S = 120.0, 300.0  # between two bytes, also while a place works; for all of a body
_PIECE_BYTES = 1 << 14


@dataclass(slots=True)
class Answers:
    """Those of one publication, counted."""

    count: int = 0
    size_bytes: int = 0

    def body(self, pieces: Iterable[bytes], close: Callable[[], object]) -> bytes:
        """A whole body. Raises OSError past a bound, once the connection is closed."""
        self.count += 1
        body, until = bytearray(), time.monotonic() + _ANSWER_S
        for piece in pieces:
            body += piece
            self.size_bytes += len(piece)
            if len(body) > MAX_ANSWER_BYTES or self.size_bytes > MAX_BYTES or time.monotonic() > until:
                close()
                raise OSError(
                    f"an answer of more than {MAX_ANSWER_BYTES} bytes, or {MAX_BYTES} in all, or {_ANSWER_S:g} s"
                )
        if self.count > MAX_ANSWERS:
            raise OSError(f"more than {MAX_ANSWERS} answers")
        return bytes(body)


def bound_requests(session: Any, answers: Answers) -> None:
    """Bound a session of `requests`."""
    send = session.send

    def send_in_time(request: Any, **told: Any) -> Any:
        return send(request, **{**told, "timeout": told.get("timeout") or _SILENCE_S})

    def read(response: Any, **_: Any) -> None:
        """Before the client does, which then finds what was read here."""
        response._content = answers.body(response.iter_content(_PIECE_BYTES), response.close)

    session.send = send_in_time
    session.hooks["response"].append(read)


@contextmanager
def bounded_hub(answers: Answers) -> Iterator[None]:
    """Bound every client of `httpx` that the hub's library makes in the block, also after a connection that failed."""
    from huggingface_hub import get_session, set_client_factory

    first: Any = get_session()
    kind, hooks = type(first), list(first.event_hooks["request"])

    def read(response: Any) -> None:
        if response.request.method != "HEAD":
            response._content = answers.body(response.iter_bytes(_PIECE_BYTES), response.close)

    def made(*, is_bounded: bool = True) -> Any:
        told = {"request": hooks, "response": [read] if is_bounded else []}
        return kind(event_hooks=told, follow_redirects=True, timeout=_SILENCE_S if is_bounded else None)

    set_client_factory(made)
    try:
        yield
    finally:
        set_client_factory(lambda: made(is_bounded=False))
