"""What is asked of an engine, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedlora_serve.adapters.leases import Lease
from fedlora_serve.text.sampling import ChosenToken, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """More text of a sequence; never half a character, and nothing of a stop string."""

    text: str
    completion_tokens: int = 0  # of the sequence, so far
    tokens: tuple[ChosenToken, ...] = ()  # since the last piece; empty unless log-probabilities were asked for


FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of a sequence, whatever became of it; nothing comes after."""

    reason: FinishReason
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, whose keys and values were there already
    message: str = ""  # what went wrong, where the reason is "error"


Event = Piece | Finished


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One sequence that is wanted. `on_event` is called on the engine's thread and must not block or raise."""

    prompt: Sequence[int]
    sampling: Sampling
    on_event: Callable[[Event], None]
    adapter: Lease | None = None  # released by the engine when the sequence has ended; None: the base
    share: str = ""  # whose rows and places in the queue it takes: all that is asked for under one name has one share


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine does just now, and what it has done since it started."""

    running: int  # sequences in the batch
    waiting: int  # requests in the queue
    rows: int  # sequences that fit into a batch
    cache_bytes: int  # of keys and values, of running sequences and of prefixes
    cache_budget_bytes: int
    prefix_lookups: int  # tokens of prompts that were looked for
    prefix_hits: int  # and found
    running_adapters: dict[str, int] = field(default_factory=dict)  # {name: running sequences}
    waiting_adapters: dict[str, int] = field(default_factory=dict)


class TextEngine(Protocol):
    """Answers many requests at a time. Safe to call from any thread."""

    @property
    def max_tokens(self) -> int:
        """The longest prompt and answer together, in tokens."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests: it is not closing, and its thread runs."""
        ...

    @property
    def trouble(self) -> str:
        """A sentence on a step of the model that does not end, or had to be stopped; empty where all is well."""
        ...

    def check_room(self, share: str, count: int) -> None:
        """Raises BusyError where so many requests of one share would not be taken: before anything is done for them."""
        ...

    def submit(self, request: Request) -> None:
        """Take a request; its events follow, and one `Finished` ends them.

        Raises BusyError where the queue and the part of it that is theirs are full, ConfigError where the prompt is empty,
        has a token that the base has not, or leaves no room for a sequence. The lease of a request that is refused is
        released.
        """
        ...

    def cancel(self, request: Request) -> None:
        """End a request early; `Finished` with reason "cancelled" follows unless it ended before."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self, timeout_s: float) -> None:
        """Take no more requests, finish those that run within `timeout_s`, and cancel what is left."""
        ...
