"""What devices tell beside their losses: labels that were told right, and the loss of the test set that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add

from fedlora.wire.choice_counts import ChoiceCounts
from fedlora.wire.label_counts import TEST, LabelCounts

from fedlora_server.run.round_record import MAX_LOSS, RoundRecord

Counts = LabelCounts | ChoiceCounts
_MOST_TOKENS = 1 << 40  # of one device's share of the test set


def enter_scores(record: RoundRecord, told: Mapping[str, Mapping[str, float]], labels: int) -> None:
    """Enter what each device told of a base with so many labels, 0 for a decoder; what cannot be is left out.

    Those that never train have scores of their own, and measure the test set with all others.
    """
    if not told:
        return
    counts = {device: _read(metrics, labels) for device, metrics in told.items()}
    never, sound = record.never_trained_loss, {device: one for device, one in counts.items() if one is not None}
    trained = {device: one for device, one in sound.items() if device not in never}
    record.accuracy |= {device: scores_of([one])["accuracy"] for device, one in trained.items()}
    record.scores = scores_of(trained.values())
    record.never_trained_scores = scores_of(one for device, one in sound.items() if device in never)
    record.test = _of_test_set(told, labels)


def _of_test_set(told: Mapping[str, Mapping[str, float]], labels: int) -> dict[str, float]:
    """{measure: value} over the shares of all devices together: as if one had measured all of it."""
    loss = tokens = devices = 0.0
    counts: list[Counts] = []
    for metrics in told.values():
        its_loss, its_tokens = metrics.get(f"{TEST}loss", -1.0), metrics.get(f"{TEST}tokens", 0.0)
        its_counts = _read(metrics, labels, TEST)
        if not (0 <= its_loss <= MAX_LOSS and 1 <= its_tokens <= _MOST_TOKENS) or (labels and its_counts is None):
            continue
        loss, tokens, devices = loss + its_loss * its_tokens, tokens + its_tokens, devices + 1
        counts += [its_counts] if its_counts else []
    return {"loss": loss / tokens, "tokens": tokens, "devices": devices, **scores_of(counts)} if tokens else {}


def _read(metrics: Mapping[str, float], labels: int, prefix: str = "") -> Counts | None:
    """What a device told of a base with so many labels, 0 for a decoder; None where it told nothing, or what cannot be."""
    return LabelCounts.read(metrics, labels, prefix) if labels else ChoiceCounts.read(metrics, prefix)


def scores_of(counts: Iterable[Counts]) -> dict[str, float]:
    """{measure: value} of all counts together. The accuracy of a decoder is `acc` of its questions."""
    several = list(counts)
    found: dict[str, float] = reduce(add, several).scores() if several else {}
    return {"accuracy": found.pop("acc"), **found} if "acc" in found else found
