"""One encoder in one ONNX Runtime session: texts in, a vector of each out, every call with an adapter or without."""

# S texts, T tokens of the longest, E numbers of a vector

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import AdapterError, ConfigError, FedloraError, GraphError, PackError
from fedlora.exported.profiles import DEFAULT, Profile, graph_name
from fedlora.family import EncoderShape
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.limits import Limits
from fedlora_serve.session import open_graph
from fedlora_serve.step_watch import StepWatch
from fedlora_serve.text.tokenizer import enough_of, open_tokenizer, tokens_of

_PROFILES: tuple[Profile, ...] = (DEFAULT, "base")  # what a merged base has is the latter alone
_MAX_TOKENS = 2048  # of a run, with padding: the attention of 12 heads over texts of 512 takes 50 MB


class TextEncoder:
    """The exported encoder of one folder. It may be called from several threads.

    What its graph gives is its `output`, one of which is `what`; a kind of encoder says whether a base has it.
    """

    output: ClassVar[str]
    what: ClassVar[str]

    def __init__(
        self,
        directory: str | Path,
        *,
        threads: int = 0,
        max_tokens: int = _MAX_TOKENS,
        step_timeout_s: float = Limits().step_timeout_s,
    ) -> None:
        """Verify the pack and the graph (compat, or else base), and build the session.

        `threads` 0 leaves the choice to ONNX Runtime; a run has at most `max_tokens` tokens, unless one text is longer;
        `step_timeout_s` is what a run may take at least (`step_watch`).

        Raises PackError, GraphError.
        """
        self.base = open_pack(directory)
        self._shape = self.shape_of(self.base)
        names = [graph_name(self._shape, profile) for profile in _PROFILES]
        self.graph_manifest, self._session = open_graph(self.base, names, threads=threads)
        self.tokenizer = open_tokenizer(self.base.directory)
        self._cut_tokenizer = self._cutting(open_tokenizer(self.base.directory))
        self._max_tokens = max_tokens
        self.watch = StepWatch(step_timeout_s)

    @classmethod
    def shape_of(cls, base: BasePack) -> EncoderShape:
        """The model, where its graph gives the output. Raises PackError, which says what does."""
        raise NotImplementedError

    @property
    def is_alive(self) -> bool:
        """Whether it takes texts."""
        return not self.watch.is_lost

    @property
    def trouble(self) -> str:
        """A sentence on a run that does not end, or had to be stopped; empty where all is well."""
        return self.watch.trouble

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens; where the base says how texts are cut, those of `tokens` are no longer."""
        return self._shape.embedding.max_tokens or self._shape.max_positions

    def tokens(self, text: str) -> list[int]:
        """The tokens of `text`, among the special ones of the tokenizer, as the base says that texts are prepared; where it
        has many more than `max_tokens`, those of its beginning, still more than twice as many.

        Raises ConfigError where it is no UTF-8.
        """
        steps = self._shape.embedding
        text = steps.prompt + text
        if steps.strips:
            text = text.strip()
        text = text.lower() if steps.lower_case else text
        if steps.max_tokens:
            text = enough_of(self.tokenizer, text, steps.max_tokens, from_end=steps.cut_left)
        return tokens_of(self._cut_tokenizer, text, add_special_tokens=True, at_most=self.max_tokens)

    def _cutting(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, which cuts texts where the base says so, and keeps the special tokens."""
        steps = self._shape.embedding
        if not steps.max_tokens:
            return tokenizer
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if steps.max_tokens <= special:
            raise PackError(
                f"{self.base.directory}: texts are cut to {steps.max_tokens} tokens, and {special} of them are the "
                "tokenizer's own; raise max_seq_length in the checkpoint's sentence_bert_config.json and pack it again"
            )
        tokenizer.enable_truncation(steps.max_tokens, direction="left" if steps.cut_left else "right")
        return tokenizer

    def vectors(
        self, rows: Sequence[Sequence[int]], adapter: LoadedAdapter | None = None
    ) -> NDArray[np.float32]:  # [S, E]
        """What the graph gives of each text.

        Raises ConfigError for a text that the base cannot read, AdapterError, or GraphError without an adapter, where a
        number is not finite, AdapterMismatchError where the graph does not take what the adapter has, and what `watch`
        raises.
        """
        for number, tokens in enumerate(rows):
            self._check(number, tokens)
        adapter_inputs, result = self._adapter_inputs(adapter), None
        for batch in batches_by_length([len(tokens) for tokens in rows], self._max_tokens):
            vectors = self._run([rows[number] for number in batch], adapter_inputs, adapter)
            if result is None:
                result = np.empty((len(rows), vectors.shape[1]), np.float32)
            result[batch] = vectors
        return np.empty((0, 0), np.float32) if result is None else result

    def _adapter_inputs(self, adapter: LoadedAdapter | None) -> Mapping[str, NDArray[np.float32]]:
        """The adapter inputs of the graph."""
        if adapter is None:
            return {}
        self.graph_manifest.check_takes(adapter.inputs, adapter.name, self.base.directory)
        return adapter.inputs

    def _run(
        self,
        rows: Sequence[Sequence[int]],
        adapter_inputs: Mapping[str, NDArray[np.float32]],
        adapter: LoadedAdapter | None,  # whose inputs they are
    ) -> NDArray[np.float32]:  # [S, E]
        lengths = np.array([len(tokens) for tokens in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]  # [S, T]
        ids = np.full(mask.shape, self._shape.pad_token_id, np.int64)
        ids[mask] = np.concatenate(rows)
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64), **adapter_inputs}
        graph = self.base.directory / self.graph_manifest.graph
        try:
            with self.watch.step(ids.size) as options:
                vectors: NDArray[np.float32] = self._session.run([self.output], feeds, options)[0]
        except FedloraError:  # the run did not end
            raise
        except Exception as error:  # the runtime raises its own kinds, which share no base
            raise GraphError(f"{graph}: ONNX Runtime does not run it: {error}; export it again") from None
        if np.isfinite(vectors).all():
            return vectors
        if adapter:
            raise AdapterError(
                f"{adapter.name} ({adapter.source}): with it {self.what} is not finite: its values are too large; use "
                "another adapter"
            )
        raise GraphError(f"{graph}: {self.what} is not finite; export it again")

    def _check(self, number: int, tokens: Sequence[int]) -> None:
        if not 1 <= len(tokens) <= self.max_tokens:
            raise ConfigError(
                f"text {number}: {len(tokens)} tokens; the base takes 1 to {self.max_tokens}: shorten the text or divide it"
            )
        vocabulary = self._shape.vocab_size
        if not all(0 <= token < vocabulary for token in tokens):
            raise ConfigError(f"text {number}: expected token ids from 0 to {vocabulary - 1}, got {list(tokens)[:8]}")


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of the texts, the shortest first, as many at a time as make `max_tokens` when they are padded.

    A text that is longer than that is alone.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > max_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
