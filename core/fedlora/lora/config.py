"""Where a LoRA adapter sits and how large its update is (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fedlora.errors import ConfigError
from fedlora.family import LINEAR_MODULES
from fedlora.lora.layers import layer_of, layers_of

WHOLE_HEAD = "auto"  # as what trains whole beside an adapter: an encoder's head, and nothing of a decoder
ALL_LINEAR = "all-linear"  # as a run's only target module: every linear module of the base's blocks
KINDS = (
    "lora",
    "ia3",
    "dora",
    "vera",
    "prompt",
    "prefix",
)  # what an adapter may add to the frozen base: a file each in `kinds`
MAX_RANK = 4096
MAX_ALPHA = 1e6
MAX_VIRTUAL_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """W' = W + scaling * B A, with scaling = alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732).

    That is the kind `lora`; what other kinds use of these numbers is said in their files. With `layers`, only modules of
    those layers get an adapter. A pattern gives single modules a rank or an alpha of their
    own: {"model.layers.0.mlp.up_proj": 4}.
    """

    method: str = "lora"  # the kind of the adapter
    rank: int = 16
    alpha: float = 32.0
    use_rslora: bool = False
    target_modules: tuple[str, ...] = LINEAR_MODULES
    layers: tuple[int, ...] = ()  # by number, from 0; empty: all
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    projection_prng_key: int = 0  # of vera: the number that A and B are made from
    num_virtual_tokens: int = 20  # of prompt and prefix: tokens that no text has, before each text

    def __post_init__(self) -> None:
        if self.method not in KINDS:
            raise ConfigError(f"method must be one of {', '.join(KINDS)}, got {self.method!r:.40}")
        for where, rank in [("rank", self.rank), *self.rank_pattern.items()]:
            if type(rank) is not int or not 1 <= rank <= MAX_RANK:
                raise ConfigError(f"{where}: a rank must be an integer from 1 to {MAX_RANK}, got {rank!r}")
        for where, alpha in [("alpha", self.alpha), *self.alpha_pattern.items()]:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
                raise ConfigError(
                    f"{where}: an alpha must be a positive number, got {alpha!r:.40}; at most {MAX_ALPHA:g}"
                )
        if type(self.projection_prng_key) is not int or not 0 <= self.projection_prng_key < 1 << 63:
            raise ConfigError(f"projection_prng_key must be an integer from 0, got {self.projection_prng_key!r:.40}")
        if type(self.num_virtual_tokens) is not int or not 1 <= self.num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
            raise ConfigError(
                f"num_virtual_tokens must be an integer from 1 to {MAX_VIRTUAL_TOKENS}, got {self.num_virtual_tokens!r:.40}"
            )
        if type(self.use_rslora) is not bool:
            raise ConfigError(f"use_rslora must be true or false, got {self.use_rslora!r}")
        if type(self.target_modules) is not tuple or any(type(name) is not str for name in self.target_modules):
            raise ConfigError(f"target_modules must be a tuple of names, got {self.target_modules!r:.80}")
        if not self.target_modules or len(set(self.target_modules)) != len(self.target_modules):
            raise ConfigError(f"target_modules must name at least one module, each once, got {self.target_modules}")
        if type(self.layers) is not tuple or any(type(layer) is not int or layer < 0 for layer in self.layers):
            raise ConfigError(f"layers must be a tuple of numbers from 0, got {self.layers!r:.80}")
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        object.__setattr__(self, "rank_pattern", MappingProxyType(dict(self.rank_pattern)))
        object.__setattr__(self, "alpha_pattern", MappingProxyType(dict(self.alpha_pattern)))

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(module, self.rank)

    def scaling_of(self, module: str) -> float:
        """gamma in W' = W + gamma * B A."""
        rank = self.rank_of(module)
        return self.alpha_pattern.get(module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, modules: Iterable[str]) -> list[str]:
        """Those of a model's `modules` that get an adapter. Raises ConfigError for a target that the model lacks."""
        modules = list(modules)
        leaves = {module.rsplit(".", 1)[-1] for module in modules}
        unknown = [
            t for t in self.target_modules if t not in leaves and not any(_ends(module, t) for module in modules)
        ]
        if unknown:
            raise ConfigError(
                f"target_modules: the base has no {', '.join(unknown)}; it has {', '.join(sorted(leaves))}"
            )
        found = [module for module in modules if any(_ends(module, target) for target in self.target_modules)]
        if not self.layers:
            return found
        missing = sorted(set(self.layers) - set(layers_of(modules)))
        if missing:
            raise ConfigError(f"layers: the base has no layer {missing[0]}; it has {len(layers_of(modules))}, from 0")
        return [module for module in found if layer_of(module) in self.layers]


def _ends(module: str, target: str) -> bool:
    """Whether `target` is a module's name or the end of one, as PEFT has it: `output.dense` is `attention.output.dense`."""
    return module == target or module.endswith(f".{target}")
