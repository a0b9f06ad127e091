"""One sequence on its way: its tokens so far, and what is sent of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from fedlora.errors import FedloraError
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.batching.request import Event, Finished, FinishReason, Piece, Request
from fedlora_serve.text.answer_text import AnswerText
from fedlora_serve.text.sampling import ChosenToken
from fedlora_serve.text.token_sampler import TokenSampler

_log = logging.getLogger(__name__)


class SequenceState:
    """A request on its way. `length` of its tokens have keys and values in the row that it holds, after virtual ones."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, *, vocab_size: int, stop_token_ids: Sequence[int], limit: int
    ) -> None:
        """`limit` is the longest prompt and answer together, with the adapter's virtual tokens."""
        self.request = request
        self.tokens = list(request.prompt)
        self.length = 0
        self.has_begun = False  # to read its prompt: it has what there was of it
        self.number = 0  # later ones joined the batch later
        self.cached_tokens = 0  # of the prompt, which it has not read itself
        self._prompt_length = len(self.tokens)
        self._limit = limit - self.virtual_tokens
        self._tokenizer, self._vocab_size, self._stop_token_ids = tokenizer, vocab_size, stop_token_ids
        self._chosen: list[ChosenToken] = []
        self._is_heard, self._is_abandoned = True, False
        self._has_answer = False  # a token of it was chosen

    # Made with its first token: most of those that somebody asks for at once wait, and may be cancelled.
    @cached_property
    def _answer(self) -> AnswerText:
        prompt = self.tokens[: self._prompt_length]
        return AnswerText(self.request.sampling, self._tokenizer, prompt, self._stop_token_ids)

    @cached_property
    def _sampler(self) -> TokenSampler:
        prompt = self.tokens[: self._prompt_length]
        return TokenSampler(self.request.sampling, prompt, self._vocab_size, self._answer.ends)

    @property
    def adapter(self) -> LoadedAdapter | None:
        return self.request.adapter.version if self.request.adapter else None

    @property
    def digest(self) -> str:
        """The digest of its adapter; empty for the base."""
        return self.adapter.digest if self.adapter else ""

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that answer: none, one, or several together."""
        return [part.adapter.name for part in self.adapter.parts] if self.adapter else []

    @property
    def virtual_tokens(self) -> int:
        """Those of its adapter, whose keys and values stand before those of its own tokens."""
        return self.adapter.virtual_tokens if self.adapter else 0

    @property
    def row_length(self) -> int:
        """The tokens that its row has, virtual ones among them."""
        return self.virtual_tokens + self.length

    @property
    def row_tokens(self) -> int:
        """The tokens that its row has once all of its own are read."""
        return self.virtual_tokens + len(self.tokens)

    @property
    def uncomputed_tokens(self) -> int:
        """Tokens that have to be read before the next one can be chosen: one where it decodes."""
        return len(self.tokens) - self.length

    @property
    def is_decoding(self) -> bool:
        """Whether its prompt was read, so that it takes part in every step."""
        return self.uncomputed_tokens == 1 and self.length > 0

    @property
    def is_prompt_only(self) -> bool:
        """Whether nothing was answered yet."""
        return len(self.tokens) == self._prompt_length

    def take(self, scores: NDArray[np.float32]) -> FinishReason | None:  # scores [V]
        """Choose the next token from its scores, and send what became text; why the sequence ends, if it does."""
        self._has_answer = True
        chosen = self._sampler.choose(scores)
        text = self._answer.push(chosen.token)
        if not self._answer.is_ended_by_token:
            self.tokens.append(chosen.token)
        if self._answer.has_all and self.request.sampling.logprobs is not None:
            self._chosen.append(chosen)
        self._send(text)
        if not self._is_heard:
            return "cancelled"
        if self._answer.has_ended:
            return "stop"
        if self._completion_tokens == self.request.sampling.max_tokens or len(self.tokens) == self._limit:
            return "length"
        return None

    def end(self, reason: FinishReason, message: str = "") -> None:
        """Send what is left and the end, and let the adapter go."""
        try:
            if reason in ("stop", "length"):
                self._send(self._answer.finish())
                if self._chosen:
                    self._send("", always=True)
        finally:
            self._tell(
                Finished(
                    reason=reason,
                    completion_tokens=self._completion_tokens,
                    cached_tokens=self.cached_tokens,
                    message=message,
                )
            )
            if self.request.adapter:
                self.request.adapter.release()

    def abandon(self, message: str) -> None:
        """Tell the end, and nothing after it, on any thread. Its adapter stays: a step that does not end may read it."""
        self._tell(Finished(reason="error", completion_tokens=self._completion_tokens, message=message))
        self._is_abandoned = True

    @property
    def _completion_tokens(self) -> int:
        if self.is_prompt_only and not self._has_answer:
            return 0
        return len(self.tokens) - self._prompt_length + self._answer.is_ended_by_token

    def _send(self, text: str, *, always: bool = False) -> None:
        if text or always:
            self._tell(Piece(text=text, completion_tokens=self._completion_tokens, tokens=tuple(self._chosen)))
            self._chosen.clear()

    def _tell(self, event: Event) -> None:
        if self._is_abandoned:
            return
        try:
            self.request.on_event(event)
        except Exception:  # a listener's own bug must not end the others' sequences
            _log.exception("a listener of events failed; its sequence ends")
            self._is_heard = False


def failure_message(error: Exception) -> str:
    """What a client is told of an error: of our own bugs their kind alone."""
    if isinstance(error, FedloraError):
        return str(error)
    _log.error("a sequence failed", exc_info=error)
    return f"the server failed: {type(error).__name__}"
