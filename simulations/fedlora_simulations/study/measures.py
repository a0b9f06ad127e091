"""The numbers that a learning rate may be chosen by, of the devices' held-out data: nothing here is of the test set."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora_server.run.loss_over_devices import accuracy_over_devices, loss_over_devices

from fedlora_simulations.study.definition import SCORES


def measures_of(
    loss: Mapping[str, float], examples: Mapping[str, float], accuracy: Mapping[str, float], scores: Mapping[str, float]
) -> dict[str, float]:
    """{name of CHOOSE_BY: value} of the devices' losses and accuracies and the scores of all their texts together.

    Scores only where every device has labels: those of some would be another number.
    """
    over, right = loss_over_devices(loss, examples), accuracy_over_devices(accuracy, examples)
    found = {
        "loss": over.get("mean"), "weighted_loss": over.get("weighted_mean"), "median_loss": over.get("median"),
        "worst_tenth": over.get("worst_tenth"),
    }  # fmt: skip
    if accuracy.keys() == loss.keys():
        found |= {
            **{name: value for name, value in scores.items() if name in SCORES},
            "worst_tenth_accuracy": right["worst_tenth"],
        }
    return {name: value for name, value in found.items() if value is not None}
