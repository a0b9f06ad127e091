"""What one client may ask for at most, so that none can take the service from the others."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fedlora.errors import ConfigError

MEBIBYTE = 1 << 20
MOST_ADAPTERS = 64  # that `max_adapters` may be: a longer list is refused as it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of sizes, counts and times. What exceeds one is refused; no bound can be switched off."""

    max_body_bytes: int = 2 * MEBIBYTE  # of a request; 413
    max_header_bytes: int = 32 << 10  # of a request's first line and headers together; 400
    max_connections: int = 512  # open at a time; one more is answered 503
    max_prompt_tokens: int = 131_072  # of one prompt; the base's context bounds it too
    max_tokens: int = 8192  # of one answer; the base's context bounds it too
    max_n: int = 16  # answers to one prompt
    max_batch_prompts: int = 64  # prompts, or texts to embed, in one request
    max_answers: int = 128  # prompts times n, in one request
    max_adapters: int = 8  # that answer one request together
    max_logprobs: int = 1 << 18  # in an answer: tokens times (likeliest ones + 1), or texts times labels
    body_timeout_s: float = 30.0  # for a request's body to come; 408
    send_timeout_s: float = 30.0  # for a client to take one piece of an answer; then its requests are cancelled
    request_timeout_s: float = 600.0  # for a whole answer, its time in the queue included
    keep_alive_timeout_s: int = 30  # a connection may wait for its next request
    step_timeout_s: float = 120.0  # for a step of the model to end, or more where steps are slow (`step_watch`); 503
    unload_timeout_s: float = 10.0  # an answer to "unload" waits for the requests that use the adapter
    shutdown_timeout_s: float = 30.0  # running answers may go on before they are cancelled

    def __post_init__(self) -> None:
        for bound in fields(self):
            value = getattr(self, bound.name)
            if not 0 < value < 1 << 40:  # NaN too is refused
                raise ConfigError(f"limits.{bound.name} must be above 0 and below 2^40, got {value!r}")
        if self.max_adapters > MOST_ADAPTERS:
            raise ConfigError(f"limits.max_adapters must be at most {MOST_ADAPTERS}, got {self.max_adapters}")
