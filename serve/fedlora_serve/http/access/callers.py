"""Whoever sent a request, as far as its key tells: which models exist for them, and how much they get.

What a key may not use does not exist for it: the same 404 as for a name that nobody has, and absent from every list.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from fedlora_serve.http.access.token_bucket import Clock, TokenBucket
from fedlora_serve.http.protocol.errors import ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key: what it is known by, and what it is good for."""

    name: str
    digest: bytes  # sha256 of the key
    models: tuple[str, ...] = ()  # names that it may use, `*` stands for any characters; empty: all
    requests_per_minute: int = 0  # 0: any number
    tokens_per_minute: int = 0  # of prompts and answers; 0: any number


class Caller(Protocol):
    """Whoever sent a request, as far as its key tells."""

    @property
    def name(self) -> str:
        """The key's, or the address: all who come under one name have one share of the batch and of its queue."""
        ...

    def may_use(self, model: str) -> bool:
        """Whether the model exists for this caller: for lists, and for what an error names."""
        ...

    def begin(self) -> None:
        """Count one request, before anything of it is read. Raises ApiError 429, with Retry-After, and counts nothing."""
        ...

    def take(self, tokens: int) -> None:
        """Count the tokens of its prompts. Raises ApiError 429, with Retry-After, and counts nothing."""
        ...

    def spend(self, tokens: int) -> None:
        """Count the tokens of an answer, once it has ended; what it took too much delays the next request."""
        ...


class Anyone:
    """Whoever comes where no keys are set, and the operator: all models, no bound."""

    def __init__(self, name: str) -> None:
        self.name = name

    def may_use(self, model: str) -> bool:
        return True

    def begin(self) -> None: ...

    def take(self, tokens: int) -> None: ...

    def spend(self, tokens: int) -> None: ...


class KeyHolder:
    """Whoever holds one of the keys. All who hold the same one share what it is good for."""

    def __init__(self, key: ApiKey, clock: Clock) -> None:
        self.name, self._models = key.name, key.models
        self._requests = TokenBucket(key.requests_per_minute, clock) if key.requests_per_minute else None
        self._tokens = TokenBucket(key.tokens_per_minute, clock) if key.tokens_per_minute else None
        self._lock = threading.Lock()

    @property
    def is_limited(self) -> bool:
        """Whether there are models that it may not use."""
        return bool(self._models)

    def may_use(self, model: str) -> bool:
        return not self._models or any(fnmatchcase(model, pattern) for pattern in self._models)

    def begin(self) -> None:
        self._take(self._requests, 1, "requests")

    def take(self, tokens: int) -> None:
        self._take(self._tokens, tokens, "tokens")

    def _take(self, bucket: TokenBucket | None, cost: int, what: str) -> None:
        if bucket is None:
            return
        with self._lock:
            wait_s = bucket.wait_s(cost)
            if not wait_s:
                bucket.spend(cost)
                return
        seconds = math.ceil(wait_s)
        raise ApiError(
            429,
            f"the key {self.name!r} has used up its {what} of a minute; try again in {seconds} s",
            "rate_limit_error",
            "rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )

    def spend(self, tokens: int) -> None:
        if self._tokens:
            with self._lock:
                self._tokens.spend(tokens)
