"""An example becomes pairs of tokens: one that is read, and the one that is learned after it."""

# N pairs of one example

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from fedlora.base.tokenizer import begun, ended
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import Chat, Completion, Example, Labelled, MultipleChoice, TextRecord
from fedlora.errors import DataError, PackError
from fedlora.family import DecoderShape
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer

from fedlora_client.data.continuation import split_tokens
from fedlora_client.data.tokenizer import encoded, token_ids

IGNORED = -100  # the target of a position where nothing is learned, which the loss leaves out


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is read of one example, and what is learned at each position."""

    inputs: NDArray[np.int64]  # [N]
    targets: NDArray[np.int64]  # [N], IGNORED where nothing is learned
    not_found: int = 0  # answers of a chat that could not be told from the rest of its text, and are not learned
    unheard: tuple[str, ...] = ()  # fields of its messages that the base's chat template does not write

    def __len__(self) -> int:
        return len(self.inputs)

    def cut(self, length: int) -> Pairs:
        """The first `length` pairs, without those at the end after which nothing is learned."""
        learned = np.flatnonzero(self.targets[:length] != IGNORED)
        end = int(learned[-1]) + 1 if len(learned) else 0
        return replace(self, inputs=self.inputs[:end], targets=self.targets[:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleEncoder:
    """The tokenizer of a base, its special tokens and its chat template."""

    tokenizer: Tokenizer
    shape: DecoderShape
    chat_template: ChatTemplate | None = None

    def pairs(self, example: Example, where: str) -> Pairs:
        """Text is learned from its first token on, a completion after its prompt, a chat where the assistant speaks.

        Raises DataError for a chat that the base cannot write, PackError where the tokenizer is another model's.
        """
        match example:
            case str():
                return self._pairs([], self._begun(self._ids(example)), where)
            case TextRecord() | Labelled():  # a label is for an encoder; to a decoder it is one more field
                return self._pairs([], self._begun(self._ended(self._ids(example.text))), where)
            case Completion():
                # Apart, so that no token holds a bit of both: when it is asked, the model reads the prompt alone.
                prompt, completion = split_tokens(self.tokenizer, example.prompt, example.completion)
                learned = self._ended(completion)
                whole = self._begun(np.concatenate([prompt, learned]))
                return self._pairs(whole[: len(whole) - len(learned)], learned, where)
            case MultipleChoice():  # the right answer, as any other completion
                return self.pairs(example.completion, where)
            case Chat():
                return self._chat(example, where)

    def choice_pairs(self, example: MultipleChoice, where: str) -> list[Pairs]:
        """What is read of the prompt with each of its choices, where only the choice's own tokens are asked for.

        A choice stands after a space; blanks at the prompt's end go with it, and its tokens are those of the joined text
        that follow as many as the prompt has alone: as lm-eval's `TemplateLM._encode_pair` has it.
        """
        prompt = example.prompt.rstrip()
        blanks, read = example.prompt[len(prompt) :], self._ids(prompt)
        found = []
        for number, choice in enumerate(example.choices):
            learned = self._ids(f"{prompt}{blanks} {choice}")[len(read) :]
            if not len(learned):
                raise DataError(
                    f"{where}: choice {number} ({choice!r:.40}) has no token of its own; give it a text that has"
                )
            whole = self._begun(np.concatenate([read, learned]))
            found.append(self._pairs(whole[: len(whole) - len(learned)], learned, where))
        return found

    def _chat(self, chat: Chat, where: str) -> Pairs:
        if self.chat_template is None:
            raise DataError(
                f"{where}: it has messages, and the base has no chat template; give prompt and completion instead, or "
                "pack a model whose chat_template.jinja or tokenizer_config.json has one"
            )
        rendered = self.chat_template.rendered(chat, where)
        tokens, begins, ends = encoded(self.tokenizer, rendered.text)
        ids = self._checked(tokens, where)
        learned = np.zeros(len(ids), bool)
        for begin, end in rendered.spans:
            # A token is the assistant's if any character of it is; one without characters, if it stands there.
            learned |= (begins < end) & (np.maximum(ends, begins + 1) > begin)
        targets = np.where(learned, ids, IGNORED)[1:]
        return Pairs(ids[:-1], targets, not_found=rendered.not_found, unheard=rendered.unheard)

    def _pairs(self, read: ArrayLike, learned: NDArray[np.int64], where: str) -> Pairs:
        ids = self._checked(np.concatenate([np.asarray(read, np.int64), learned]), where)
        targets = ids.copy()
        targets[: len(ids) - len(learned)] = IGNORED
        return Pairs(ids[:-1], targets[1:])

    def _begun(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        first = ids[: len(self.shape.tokens_before_text)]
        return np.concatenate([np.array(begun(self.shape, first.tolist()), np.int64), ids[len(first) :]])

    def _ended(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([ids[:-1], np.array(ended(self.shape, ids[-1:].tolist()), np.int64)])

    def _ids(self, text: str) -> NDArray[np.int64]:
        return token_ids(self.tokenizer, text)

    def _checked(self, ids: NDArray[np.int64], where: str) -> NDArray[np.int64]:
        return checked_ids(ids, self.shape.vocab_size, where)


def checked_ids(ids: ArrayLike, vocabulary: int, where: str) -> NDArray[np.int64]:
    """The ids [N]. Raises PackError where the tokenizer is another model's."""
    result: NDArray[np.int64] = np.asarray(ids, np.int64)
    if len(result) and result.max() >= vocabulary:
        raise PackError(
            f"{where}: the tokenizer gave id {result.max()}, the base's vocabulary has {vocabulary}: they "
            "do not belong together; pack the model again with its own tokenizer"
        )
    return result
