"""vera: one A and one B for all modules, random and frozen; of each module two vectors train: W' = W + diag(b) B diag(d) A.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2023 (arXiv:2310.11454). A [R, I_max] and B [O_max, R] are
made from a number, `projection_prng_key`, as PEFT makes them (peft 0.21; Kaiming-uniform, torch's generator of numbers), so
that nobody sends or stores them; a module takes the first I columns of A and the first O rows of B.

Own tensors: MODULE.vera_lambda_d [R], which begins at 0.1, and MODULE.vera_lambda_b [O], which begins at 0.

Their weighted mean is that of d and of b, each by itself: as for A and B in `fedavg` the mean of the products is another.
There is no product that other methods could see.

For serving it is plain LoRA: A' = diag(d) A, B' = diag(b) B, with a scaling of 1.
"""

# O out features, I in features of a module, R rank

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, ConfigError
from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import Kind, Shape, Weight, check_module, check_shape, heads_of, modules_of, own_tensors

D, B = "vera_lambda_d", "vera_lambda_b"
_BEGINS = np.float32(0.1)  # d
_BLOCK = 1 << 16  # numbers of a projection that are made at a time
_ROUNDED = 2.0**-7  # of a stored projection in bfloat16, by the largest number in it


class Vera(Kind):
    name, title, words = "vera", "VeRA", (B, D)
    takes_dropout = is_lora = True
    rate = 10.0
    keys = frozenset({"rank", "target_modules", "layers", "modules_to_save"})
    mean, mean_is_exact = "of each vector by itself: the mean of the products is another", False
    peft_type, peft_mark = "VERA", "peft_type is 'VERA'"
    shared = ("base_model.vera_A", "base_model.vera_B")

    def shapes(self, config: LoraConfig, model: ModelShape) -> dict[str, Shape]:
        modules, shapes = model.linear_modules(), dict[str, Shape]()
        for module in config.targets(modules):
            shapes |= {f"{module}.{B}": (modules[module][0],), f"{module}.{D}": (config.rank,)}
        return shapes

    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        shapes = self.shapes(config, model)
        return {n: np.full(shape, _BEGINS if n.endswith(D) else 0, np.float32) for n, shape in shapes.items()}

    def check(self, adapter: Adapter, model: ModelShape, where: str) -> None:
        self.check_whole_at(adapter, where)
        modules = model.linear_modules()
        for name, array in own_tensors(adapter, self).items():
            rows, _ = check_module(name, modules, where)
            check_shape(name, array, [(adapter.config.rank,) if name.endswith(D) else (rows,)], where)

    def check_whole(self, adapter: Adapter) -> None:
        own = own_tensors(adapter, self)
        if not own:
            raise AdapterError(f"expected {B} and {D} of some modules, got none; save the adapter again with PEFT")
        for module in modules_of(own):
            if missing := [word for word in self.words if f"{module}.{word}" not in own]:
                raise AdapterError(f"{module} has no {missing[0]}; expected {B} and {D}: save it again with PEFT")

    def refuses_method(self, method: str) -> str:
        if method == "fedavg":
            return ""
        return "it works on the factors A and B, which no device of VeRA trains: its vectors are averaged by fedavg"

    def trained_rank(self, adapter: Adapter) -> int:
        return adapter.config.rank

    def held_bytes(self, adapter: Adapter, model: ModelShape) -> int:
        return 4 * adapter.config.rank * sum(_sides(adapter, model))

    def lora_bytes(self, adapter: Adapter, model: ModelShape) -> int:
        shapes = model.linear_modules()
        return 4 * adapter.config.rank * sum(sum(shapes[module]) for module in modules_of(own_tensors(adapter, self)))

    def as_lora(self, adapter: Adapter, model: ModelShape) -> Adapter:
        lora_A, lora_B = projections_of(adapter, model)
        own, modules, pairs = own_tensors(adapter, self), model.linear_modules(), dict[str, LoraPair]()
        for module in modules_of(own):
            rows, columns = modules[module]
            pairs[module] = LoraPair(
                own[f"{module}.{D}"][:, None] * lora_A[:, :columns], own[f"{module}.{B}"][:, None] * lora_B[:rows]
            )
        config, rank = adapter.config, adapter.config.rank
        plain = LoraConfig(rank=rank, alpha=float(rank), target_modules=config.target_modules, layers=config.layers)
        return Adapter(plain, pairs, extras=heads_of(adapter, self))

    def config_of(self, peft_config: Mapping[str, Any], own: Extras) -> LoraConfig:
        if peft_config.get("bias", "none") != "none":
            raise AdapterError(f"bias is {peft_config['bias']!r:.80}; only 'none' is supported: train without biases")
        key = peft_config.get("projection_prng_key", 0)
        if type(key) is not int or not 0 <= key < 1 << 63:
            raise ConfigError(f"projection_prng_key must be an integer from 0, got {key!r:.80}")
        targets = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules_of(own)))
        return LoraConfig(
            method=self.name, rank=peft_config.get("r", 256), target_modules=targets, projection_prng_key=key
        )

    def check_shared(self, config: LoraConfig, shared: Mapping[str, NDArray[np.float32]]) -> None:
        if not shared:
            return
        lora_A, lora_B = (shared.get(name, np.zeros((0, 0), np.float32)) for name in self.shared)
        wrong = lora_A.ndim != 2 or lora_B.ndim != 2 or not (lora_A.size and lora_B.size)
        if wrong or len(lora_A) != config.rank or lora_B.shape[1] != config.rank:
            raise AdapterError(
                f"vera_A is {list(lora_A.shape)} and vera_B {list(lora_B.shape)}; expected [{config.rank}, I] and "
                f"[O, {config.rank}]: save it again with PEFT"
            )
        made = projections(config, lora_A.shape[1], len(lora_B))
        for name, mine, theirs in zip(self.shared, made, (lora_A, lora_B), strict=True):
            if not bool(np.all(np.abs(mine - theirs) <= _ROUNDED * np.abs(mine).max())):
                raise AdapterError(
                    f"{name} is not what projection_prng_key = {config.projection_prng_key} makes, as PEFT has it; "
                    "expected that, which needs no room: train with PEFT's own start"
                )

    def peft_config(self, adapter: Adapter, fresh: dict[str, Any]) -> dict[str, Any]:
        kept = (
            "task_type", "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "fan_in_fan_out",
            "target_modules", "layers_to_transform",
        )  # fmt: skip
        return {
            **{key: fresh[key] for key in kept if key in fresh},
            "peft_type": self.peft_type,
            "r": adapter.config.rank,
            "projection_prng_key": adapter.config.projection_prng_key,
            "save_projection": False,
            "d_initial": 0.1,
            "vera_dropout": 0.0,
            "bias": "none",
        }


def projections_of(adapter: Adapter, model: ModelShape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A and B as all modules of an adapter share them."""
    rows, columns = _sides(adapter, model)
    return projections(adapter.config, columns, rows)


def _sides(adapter: Adapter, model: ModelShape) -> tuple[int, int]:
    """(O_max, I_max) of the modules that it is on."""
    shapes = model.linear_modules()
    targets = modules_of(name for name in adapter.extras if name.endswith((B, D)))
    return max(shapes[m][0] for m in targets), max(shapes[m][1] for m in targets)


def projections(config: LoraConfig, columns: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A [R, columns] and B [rows, R]: first A, then B, row by row from one stream."""
    # torch's generator is the Mersenne Twister, begun with the low half of a key.
    stream = np.random.RandomState(config.projection_prng_key & 0xFFFFFFFF)._bit_generator
    return _uniform(stream, (config.rank, columns)), _uniform(stream, (rows, config.rank))


def _uniform(stream: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
    """torch.nn.init's Kaiming-uniform, gain sqrt(2), as torch computes it: from 24 bits of each number, rounded once."""
    bound = np.float32(math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(shape[1]))
    width, made = np.float64(bound - -bound), np.empty(math.prod(shape), np.float32)
    for begin in range(0, len(made), _BLOCK):  # at once it would take seven times the memory of what is made
        part = made[begin : begin + _BLOCK]
        part[:] = (stream.random_raw(len(part)) & 0xFFFFFF) * 2.0**-24 * width - np.float64(bound)
    return made.reshape(shape)
