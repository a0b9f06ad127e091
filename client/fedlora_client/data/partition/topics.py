"""Texts without labels are sorted into topics: clusters of their words, by TF-IDF and spherical k-means.

Dhillon & Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering", Machine Learning 42, 2001.
"""

# M texts, V words, K topics, Z words of all texts, each counted once for each text that has it

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W\d_]{2,}")
_LOOKED_AT = 20_000  # characters of a text: what it is about is told by then
_MOST_WORDS = 20_000  # V, those that most texts have
_ROUNDS = 20
_BLOCK = 1 << 16  # of Z


@dataclass(frozen=True)
class _Texts:
    """A row for each text, of length 1: the words that it has, and their weights. A text without a known word has none."""

    words: NDArray[np.int64]  # [Z]
    weights: NDArray[np.float64]  # [Z]
    texts: NDArray[np.int64]  # [Z], the text of each, ascending
    count: int  # M
    size: int  # V

    def scores(self, centres: NDArray[np.float64]) -> NDArray[np.float64]:  # [K, V] -> [M, K]
        result = np.zeros((self.count, len(centres)))
        for start in range(0, len(self.words), _BLOCK):
            some = slice(start, start + _BLOCK)
            terms = self.weights[some, None] * centres[:, self.words[some]].T
            np.add.at(result, self.texts[some], terms)
        return result

    def centres(self, topics: NDArray[np.int64], count: int) -> NDArray[np.float64]:  # [M] -> [K, V]
        """The mean direction of the texts of each topic."""
        sums = np.zeros((count, self.size))
        np.add.at(sums, (topics[self.texts], self.words), self.weights)
        return _unit(sums)

    def row(self, text: int) -> NDArray[np.float64]:  # [V]
        mine = slice(*np.searchsorted(self.texts, [text, text + 1]))
        row = np.zeros(self.size)
        row[self.words[mine]] = self.weights[mine]
        return row


def topics_of(texts: Sequence[str], count: int, generator: np.random.Generator) -> list[int]:
    """The topic of each text, from 0 to below `count`; texts without a word that others have too are of topic 0."""
    rows = _tf_idf(texts)
    if not rows.size:
        return [0] * len(texts)
    topics = np.zeros(len(texts), np.int64)
    centres = _first_centres(rows, count, generator)
    for _ in range(_ROUNDS):
        before, topics = topics, rows.scores(centres).argmax(axis=1)
        if np.array_equal(before, topics):
            break
        centres = rows.centres(topics, count)
    found: list[int] = topics.tolist()
    return found


def _tf_idf(texts: Sequence[str]) -> _Texts:
    counts = [Counter(_WORD.findall(text[:_LOOKED_AT].lower())) for text in texts]
    having: Counter[str] = Counter()
    for each in counts:
        having.update(each.keys())
    known = [word for word, number in having.most_common() if 2 <= number <= len(texts) / 2][:_MOST_WORDS]
    numbers = {word: number for number, word in enumerate(known)}
    idf = {word: np.log(len(texts) / having[word]) for word in known}
    found = [
        (text, numbers[word], (1 + np.log(times)) * idf[word])
        for text, having_words in enumerate(counts)
        for word, times in having_words.items()
        if word in numbers
    ]
    of_texts = np.array([text for text, _, _ in found], np.int64)
    words = np.array([word for _, word, _ in found], np.int64)
    weights = np.array([weight for _, _, weight in found], np.float64)
    norms = np.sqrt(np.bincount(of_texts, weights**2, len(texts)))
    return _Texts(words, weights / norms[of_texts], of_texts, len(texts), len(known))


def _first_centres(rows: _Texts, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Texts that are far from each other (k-means++, Arthur & Vassilvitskii, 2007)."""
    having = np.unique(rows.texts)
    centres = [rows.row(int(generator.choice(having)))]
    nearest = np.zeros(rows.count)
    while len(centres) < count:
        nearest = np.maximum(nearest, rows.scores(centres[-1][None])[:, 0])
        distances = np.maximum(1 - nearest[having], 0)
        if not distances.sum():  # fewer different texts than topics
            break
        centres.append(rows.row(int(generator.choice(having, p=distances / distances.sum()))))
    return np.array(centres)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return units
