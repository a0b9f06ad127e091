"""Texts are sorted by what they are about, whatever labels somebody gave them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fedlora_client.data.partition.topics import topics_of


def topics(texts: list[str], count: int, seed: int = 0) -> list[int]:
    return topics_of(texts, count, np.random.default_rng(seed))


def test_texts_of_the_same_words_are_of_one_topic() -> None:
    kinds = ["bread flour oven dough", "engine wheel brake gear", "violin chord melody rhythm"]
    texts = [" ".join(np.random.default_rng(n).permutation(kinds[n % 3].split())[:3]) for n in range(60)]
    found = topics(texts, 3)
    assert {tuple(found[start : start + 3]) for start in range(0, 60, 3)} == {tuple(found[:3])}
    assert len(set(found)) == 3
    assert topics(texts, 3) == found


@pytest.mark.parametrize("texts", [["a", "", "7 7 7", "!"], ["one word each", "nothing alike", "here"], ["same"] * 5])
def test_texts_without_words_in_common_are_of_one_topic(texts: list[str]) -> None:
    assert set(topics(texts, 4)) == {0}


def test_more_topics_than_texts_leave_some_empty() -> None:
    assert all(0 <= topic < 50 for topic in topics(["red green", "green blue", "blue red", "grey"], 50))


def test_topics_of_real_news_are_near_to_what_their_editors_called_them(shared: Path) -> None:
    with gzip.open(shared / "data" / "ag_news" / "train10k.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line, _ in zip(file, range(3000), strict=False)]
    found = topics([record["text"] for record in records], 4)
    pairs = Counter(zip(found, [record["label"] for record in records], strict=True))
    right = sum(max(pairs[topic, label] for label in range(4)) for topic in range(4))
    assert right / len(records) > 0.5  # 0.25 by chance
