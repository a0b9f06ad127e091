"""How an encoder without a head makes one vector of a text: what sentence-transformers keeps beside the weights.

    text    strip(prompt + text), in lower case where the model wants it, cut to `max_tokens`
    pooled  of the last states y [T, H] of its T tokens:
            mean            sum(y) / T                 cls         y[0]
            mean_sqrt_len   sum(y) / sqrt(T)           last_token  y[T - 1]
            weighted_mean   sum(t y[t]) / sum(t), t = 1 .. T       (arXiv:2202.08904)
            max             the largest of each feature
    dense   f(W v + b), once for each of `dense`
    vector  scaled to length 1 where `normalized`

A pack without such a file has the mean, which the service scales to length 1; its texts are not cut but refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fedlora.family.sizes import check_sizes, truth, whole

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last_token"]
Activation = Literal["identity", "tanh", "relu", "gelu"]
_MAX_DENSE = 8
_MAX_PROMPT = 10_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """f(W v + b) with W [O, I]."""

    in_features: int
    out_features: int
    biased: bool
    activation: Activation

    def __post_init__(self) -> None:
        """Raises ValueError, TypeError."""
        check_sizes({"in_features": whole(self.in_features), "out_features": whole(self.out_features)})
        truth(self.biased)
        if min(self.in_features, self.out_features) < 1 or self.activation not in get_args(Activation):
            raise ValueError(f"a dense layer must have positive sizes and one of {get_args(Activation)}, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEmbedding:
    """The steps from a text to its vector."""

    pooling: Pooling = "mean"
    max_tokens: int = 0  # of a text, which is cut; 0: the model's context, and a longer text is refused
    cut_left: bool = False  # the end of a text is kept, not its beginning
    strips: bool = False  # white space around a text is taken off
    lower_case: bool = False
    prompt: str = ""  # before every text
    dense: tuple[DenseLayer, ...] = ()
    normalized: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError, TypeError."""
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r:.40}")
        if self.max_tokens < 0 or len(self.prompt) > _MAX_PROMPT or len(self.dense) > _MAX_DENSE:
            raise ValueError(
                f"expected max_tokens from 0, a prompt of at most {_MAX_PROMPT} characters and at most {_MAX_DENSE} dense "
                "layers"
            )

    def check_fits(self, hidden_size: int, max_positions: int) -> None:
        """Raise ValueError where the steps do not follow from the model's states."""
        size = hidden_size
        for layer in self.dense:
            if layer.in_features != size:
                raise ValueError(f"a dense layer takes {layer.in_features} numbers, and gets {size}")
            size = layer.out_features
        if self.max_tokens > max_positions:
            raise ValueError(f"max_tokens is {self.max_tokens}, and the model holds {max_positions}")

    def size(self, hidden_size: int) -> int:
        """The numbers of a vector."""
        return self.dense[-1].out_features if self.dense else hidden_size

    def float_tensors(self) -> dict[str, tuple[int, ...]]:
        """{tensor name: shape} of the dense layers."""
        tensors: dict[str, tuple[int, ...]] = {}
        for number, layer in enumerate(self.dense):
            tensors[f"dense.{number}.weight"] = (layer.out_features, layer.in_features)
            if layer.biased:
                tensors[f"dense.{number}.bias"] = (layer.out_features,)
        return tensors

    def to_object(self) -> dict[str, Any]:
        """Its JSON object."""
        return {**asdict(self), "dense": [asdict(layer) for layer in self.dense]}

    @classmethod
    def from_object(cls, value: Mapping[str, Any]) -> TextEmbedding:
        """What `to_object` gave. Raises ValueError, TypeError for anything else."""
        types = {"max_tokens": int, "prompt": str, "pooling": str}
        types |= dict.fromkeys(("cut_left", "strips", "lower_case", "normalized"), bool)
        fields = {name: value[name] for name in types if name in value}
        wrong = [name for name, given in fields.items() if type(given) is not types[name]]
        layers = value.get("dense", [])
        if wrong or not isinstance(layers, list) or set(value) - {*types, "dense"}:
            raise ValueError(f"expected {', '.join(types)} and dense, each of its own type, got {dict(value)!r:.200}")
        return cls(**fields, dense=tuple(DenseLayer(**layer) for layer in layers))
