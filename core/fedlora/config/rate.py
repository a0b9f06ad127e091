"""The learning rate of a run that leaves it to fedlora, `train.lr = "auto"`: by the width of the base and by what trains.

    rate = 5e-4 (2000 / H)^0.781 m

H: the base's hidden size; m: 1 for the factors of LoRA, another kind's own multiple (`Kind.rate`), a quarter of that for an
encoder with a head, a tenth for every weight. The first two factors are the rule that Thinking Machines fitted to Llama's
models (J. Schulman et al., "LoRA Without Regret", 2025, and the guide to Tinker's rates); docs/training.md says what was
measured of it, on bases of 64 to 384.
"""

from __future__ import annotations

from fedlora.family import EncoderShape, ModelShape
from fedlora.lora.kinds.kind import Kind

AUTO = "auto"
_OF_ENCODERS, _OF_ALL_WEIGHTS = 0.25, 0.1
_AT_2000, _POWER = 5e-4, 0.781
_LEAST_SIZE = 64  # measured: below it nothing is, and the rule has no end


def default_rate(model: ModelShape, kind: Kind, *, all_weights: bool = False) -> float:
    """With two digits, so that it can be told and typed. `all_weights`: of full fine-tuning."""
    rate = _AT_2000 * (2000 / max(model.hidden_size, _LEAST_SIZE)) ** _POWER * kind.rate
    for holds, part in ((isinstance(model, EncoderShape), _OF_ENCODERS), (all_weights, _OF_ALL_WEIGHTS)):
        rate *= part if holds else 1
    return float(f"{rate:.2g}")
