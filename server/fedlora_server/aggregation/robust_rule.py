"""What a robust rule is: which updates of a round count, and how much, when some devices may lie.

A rule looks at the products gamma B A, and at extra tensors: (B M, M^-1 A) is the same update, and a rule that looked at
factors could be led anywhere by a choice of M. Devices count alike, for a number of examples is a device's own word. A rule
needs every update of the round: the memory is N adapters, where the methods themselves need less.
"""

# N updates

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.plugins import Plugins

from fedlora_server.aggregation.gram import Gram, gram_of_changes
from fedlora_server.aggregation.robust_aggregator import WeighingAggregator, Weights
from fedlora_server.methods.method import Aggregator

ROBUST = Plugins(group="fedlora.robust", noun="robust rule", key="aggregation.robust")
NONE, AUTO = "none", "auto"
BY_DEFAULT = "norm-bound"  # what `auto` stands for


class RobustRule:
    """A rule. Most give weights; one that takes the place of the mean gives an aggregator of its own."""

    uses: ClassVar[frozenset[str]] = frozenset()  # of the section `aggregation`: the keys that only some rules use
    takes_examples: ClassVar[bool] = False  # it goes with weights by examples, which are capped
    replaces_mean: ClassVar[bool] = False  # of the products: it goes with methods that take one, and has no error

    def __init__(self, lora: LoraConfig, settings: AggregationConfig) -> None:
        """`lora` is what devices train."""
        self.lora, self.settings = lora, settings

    def weights(self, gram: Gram) -> Weights:
        """How much each update counts, 0 for one that does not; G_kl = <P_k, P_l> of the changes that updates make."""
        raise NotImplementedError

    def weights_of(self, adapters: Sequence[Adapter], down: Adapter) -> Weights:
        """The same from the updates: a rule that needs less than the Gram matrix overrides this too."""
        return self.weights(gram_of_changes(adapters, down))

    def aggregator(self, inner: Aggregator, down: Adapter) -> Aggregator:
        """What takes the updates of a round to `down`: `inner`, the method's, with the weights of this rule."""
        return WeighingAggregator(inner, down, self.weights_of, self.settings.max_weight)


def find_robust_rule(name: str) -> type[RobustRule] | None:
    """None for `none`, and for `auto`, which is for a method to say.

    Raises ConfigError for an unknown name, MissingExtraError where the rule lacks a part.
    """
    if name in (NONE, AUTO):
        return None
    if name not in (known := ROBUST.names()):
        raise ConfigError(f"aggregation.robust must be one of {', '.join([AUTO, NONE, *known])}, got {name!r}")
    found = ROBUST.load(name)
    if not (isinstance(found, type) and issubclass(found, RobustRule)):
        raise ConfigError(f"aggregation.robust: {name} is {found!r}; expected a subclass of fedlora_server.RobustRule")
    return found
