"""A request whose events are kept, and the lease of an adapter that counts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.batching.request import Event, Finished, Piece, Request, TextEngine
from fedlora_serve.text.sampling import Sampling

WAIT_S = 60


class CountedLease(Lease):
    """How often it was released, a second time too."""

    def __init__(self, version: LoadedAdapter) -> None:
        super().__init__(version, lambda: None)
        self.released = 0

    def release(self) -> None:
        self.released += 1
        super().release()


@dataclass(slots=True)
class Listener:
    """What came of one request."""

    lease: CountedLease | None = None
    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    request: Request = field(init=False)

    def __call__(self, event: Event) -> None:
        assert not self.ended.is_set(), "an event after the end"
        self.events.append(event)
        if isinstance(event, Finished):
            self.ended.set()

    def wait(self) -> Finished:
        assert self.ended.wait(WAIT_S), "no end came"
        last = self.events[-1]
        assert isinstance(last, Finished)
        assert self.lease is None or self.lease.released == 1
        return last

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def tokens(self) -> list[int]:
        """Those of an answer whose log-probabilities were asked for."""
        return [chosen.token for event in self.events if isinstance(event, Piece) for chosen in event.tokens]


def ask(
    engine: TextEngine, prompt: Sequence[int], sampling: Sampling, adapter: LoadedAdapter | None = None
) -> Listener:
    """Submit a request, and listen."""
    listener = Listener(lease=CountedLease(adapter) if adapter else None)
    listener.request = Request(prompt=prompt, sampling=sampling, on_event=listener, adapter=listener.lease)
    engine.submit(listener.request)
    return listener


def counted(count: int) -> Sampling:
    """The `count` likeliest tokens, told one by one, whatever they are."""
    return Sampling(max_tokens=count, ignore_eos=True, logprobs=0)
