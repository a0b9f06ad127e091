"""What a robust rule is: which updates of a round count, and how much, when some devices may lie.

A rule looks at the products gamma B A alone: (B M, M^-1 A) is the same update, and a rule that looked at factors could be
led anywhere by a choice of M. Devices count alike, for a number of examples is a device's own word. A rule needs every
update of the round: the memory is N adapters, where the methods themselves need less.
"""

# N updates

from __future__ import annotations

from typing import ClassVar

from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.plugins import Plugins

from fedlora_server.aggregation.gram import Gram
from fedlora_server.aggregation.robust_aggregator import WeighingAggregator, Weights
from fedlora_server.methods.method import Aggregator

ROBUST = Plugins(group="fedlora.robust", noun="robust rule", key="aggregation.robust")
NONE = "none"


class RobustRule:
    """A rule. Most give weights; one that takes the place of the mean gives an aggregator of its own."""

    uses: ClassVar[frozenset[str]] = frozenset()  # of the section `aggregation`: the keys that only some rules use
    replaces_mean: ClassVar[bool] = False  # of the products: it goes with methods that take one, and has no error

    def __init__(self, lora: LoraConfig, settings: AggregationConfig) -> None:
        """`lora` is what devices train."""
        self.lora, self.settings = lora, settings

    def weights(self, gram: Gram) -> Weights:
        """How much each update counts, 0 for one that does not; G_kl = <P_k, P_l> of the changes that updates make."""
        raise NotImplementedError

    def aggregator(self, inner: Aggregator, down: Adapter) -> Aggregator:
        """What takes the updates of a round to `down`: `inner`, the method's, with the weights of this rule."""
        return WeighingAggregator(inner, down, self.weights)


def find_robust_rule(name: str) -> type[RobustRule] | None:
    """None for `none`. Raises ConfigError for an unknown name, MissingExtraError where the rule lacks a part."""
    if name == NONE:
        return None
    if name not in (known := ROBUST.names()):
        raise ConfigError(f"aggregation.robust must be one of {', '.join([NONE, *known])}, got {name!r}")
    found = ROBUST.load(name)
    if not (isinstance(found, type) and issubclass(found, RobustRule)):
        raise ConfigError(f"aggregation.robust: {name} is {found!r}; expected a subclass of fedlora_server.RobustRule")
    return found
