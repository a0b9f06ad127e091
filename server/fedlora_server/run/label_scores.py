"""What devices tell beside their losses: labels that were told right, and the loss of the test set that they share."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.wire.label_counts import TEST, LabelCounts

from fedlora_server.run.round_record import MAX_LOSS, RoundRecord

_MOST_TOKENS = 1 << 40  # of one device's share of the test set


def enter_scores(record: RoundRecord, told: Mapping[str, Mapping[str, float]], labels: int) -> None:
    """Enter what each device told of a base with so many labels, 0 for a decoder; what cannot be is left out."""
    if labels:
        counts = {device: LabelCounts.read(metrics, labels) for device, metrics in told.items()}
        sound = {device: one for device, one in counts.items() if one is not None}
        record.accuracy |= {device: one.scores()["accuracy"] for device, one in sound.items()}
        record.scores = sum(sound.values(), LabelCounts.none(labels)).scores()
    record.test = _of_test_set(told, labels)


def _of_test_set(told: Mapping[str, Mapping[str, float]], labels: int) -> dict[str, float]:
    """{measure: value} over the shares of all devices together: as if one had measured all of it."""
    loss = tokens = devices = 0.0
    counts = LabelCounts.none(labels)
    for metrics in told.values():
        its_loss, its_tokens = metrics.get(f"{TEST}loss", -1.0), metrics.get(f"{TEST}tokens", 0.0)
        its_counts = LabelCounts.read(metrics, labels, TEST) if labels else None
        if not (0 <= its_loss <= MAX_LOSS and 1 <= its_tokens <= _MOST_TOKENS) or (labels and its_counts is None):
            continue
        loss, tokens, devices = loss + its_loss * its_tokens, tokens + its_tokens, devices + 1
        counts = counts + its_counts if its_counts else counts
    return {"loss": loss / tokens, "tokens": tokens, "devices": devices, **counts.scores()} if tokens else {}
