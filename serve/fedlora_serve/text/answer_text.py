"""One answer as it comes: its text, and whether it has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.text_stream import TextStream


class AnswerText:
    """Tokens in, text out, until a token or a string ends the answer."""

    def __init__(
        self, sampling: Sampling, tokenizer: Tokenizer, prompt: Sequence[int], end_token_ids: Iterable[int]
    ) -> None:
        """`prompt` are its tokens; `end_token_ids` are those with which the model ends its text."""
        self._ends = frozenset(sampling.stop_token_ids) | frozenset(() if sampling.ignore_eos else end_token_ids)
        self._includes_end, self._min_tokens = sampling.include_stop_str_in_output, sampling.min_tokens
        self._stream = TextStream(
            tokenizer,
            prompt,
            sampling.stop,
            skip_special_tokens=sampling.skip_special_tokens,
            includes_stop=self._includes_end,
            min_tokens=sampling.min_tokens,
        )
        self._count = 0
        self.is_ended_by_token = False

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that alone end it."""
        return self._ends | self._stream.stop_tokens

    @property
    def has_ended(self) -> bool:
        """Whether more tokens add nothing."""
        return self.is_ended_by_token or self._stream.stopped

    @property
    def has_all(self) -> bool:
        """Whether the last token is part of the answer: it did not end it, or what ends it is included."""
        return self._includes_end or not self.is_ended_by_token

    def push(self, token: int) -> str:
        """The text that may be sent now that `token` has come."""
        self.is_ended_by_token = token in self._ends and self._count >= self._min_tokens
        self._count += 1
        return self._stream.push(token) if self.has_all else ""

    def finish(self) -> str:
        """What is left when the answer ends here."""
        return self._stream.finish()
