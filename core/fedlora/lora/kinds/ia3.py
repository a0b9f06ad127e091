"""ia3: a vector l scales keys, values and the MLP: y = l * (W x + b), or of a module's input, y = W (l * x) + b.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022
(arXiv:2205.05638). As in PEFT (peft 0.21), the vector of the module that leaves the MLP is of its input: in a gated MLP the
same numbers as scaling what `up` gives. In an encoder `output.dense` is both modules of that name, as PEFT has it.

Own tensors: MODULE.ia3_l, [O, 1] of an output and [1, I] of an input. All begin at 1, where nothing changes.

Their weighted mean is exact: the mean of the vectors is the vector of the mean weight, diag(l) W or W diag(l). There are no
factors, so of the methods of aggregation `fedavg` alone has a meaning.
"""

# O out features, I in features of a module

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import (
    Bias,
    Kind,
    Shape,
    Weight,
    check_module,
    check_shape,
    heads_of,
    modules_of,
    own_tensors,
)
from fedlora.lora.output_scale import INPUT, SCALE, check_finite

WORD = "ia3_l"
# Modules whose vector is of the input, by the ends of their names; and what a new adapter scales, of each family its own.
_FEEDFORWARD = ("down_proj", "output.dense", "ffn.lin2")
_TARGETS = (
    ("k_proj", "v_proj", "down_proj"), ("qkv_proj", "down_proj"), ("key", "value", "output.dense"),
    ("k_lin", "v_lin", "ffn.lin2"),
)  # fmt: skip


class Ia3(Kind):
    name, title, words, scales = "ia3", "IA3", (WORD,), True
    rate = 10.0
    keys = frozenset({"target_modules", "layers", "modules_to_save"})
    mean, mean_is_exact = "exact: the mean of the vectors is the vector of the mean weight", True
    peft_type, peft_mark = "IA3", "peft_type is 'IA3'"

    def default_targets(self, modules: Iterable[str]) -> tuple[str, ...]:
        """Keys, values and the module that leaves the MLP. Where q, k and v are one module, all of it is scaled."""
        modules = list(modules)
        return next(
            targets for targets in _TARGETS if all(any(_ends(module, t) for module in modules) for t in targets)
        )

    def shapes(self, config: LoraConfig, model: ModelShape) -> dict[str, Shape]:
        modules = model.linear_modules()
        return {
            f"{module}.{WORD}": (1, modules[module][1]) if is_feedforward(module) else (modules[module][0], 1)
            for module in config.targets(modules)
        }

    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        return {name: np.ones(shape, np.float32) for name, shape in self.shapes(config, model).items()}

    def check(self, adapter: Adapter, model: ModelShape, where: str) -> None:
        own = own_tensors(adapter, self)
        if not own or adapter.pairs:
            raise AdapterMismatchError(
                f"{where}: an adapter of IA3 has tensors {WORD} and no lora_A or lora_B, got {len(own)} and "
                f"{len(adapter.pairs)} modules with factors; save it again"
            )
        modules = model.linear_modules()
        for name, array in own.items():
            rows, columns = check_module(name, modules, where)
            check_shape(name, array, ((rows, 1), (1, columns)), where)

    def as_scaled(self, adapter: Adapter, model: ModelShape, weight: Weight, bias: Bias) -> Adapter:
        """A vector of an input is of the output that the input is made of, where there is one; else of the input."""
        scales, modules = dict[str, NDArray[np.float32]](), model.linear_modules()
        for name, vector in own_tensors(adapter, self).items():
            module = name.rpartition(".")[0]
            place = model.fed_by(module) if len(vector) == 1 else (module, 0)
            if place is not None:
                source, begin = place
                found = scales.setdefault(source + SCALE, np.ones(modules[source][0], np.float32))
                found[begin : begin + vector.size] *= vector.ravel()
            elif module in model.scaled_inputs():
                scales[module + INPUT] = vector.ravel()
            else:
                raise AdapterError(
                    f"{module}: its vector is of its input, which no exported graph scales; make it one of the output "
                    "(feedforward_modules of PEFT's IA3Config), or merge the adapter into its base: fedlora export BASE "
                    "--merge ADAPTER -o DIR"
                )
        check_finite(scales)
        plain = LoraConfig(rank=1, alpha=1.0, target_modules=adapter.config.target_modules)
        return Adapter(plain, {}, extras=scales | dict(heads_of(adapter, self)))

    def merged(self, adapter: Adapter, module: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return weight * adapter.extras[f"{module}.{WORD}"]

    def merged_bias(self, adapter: Adapter, module: str, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        vector = adapter.extras[f"{module}.{WORD}"]
        return bias if len(vector) == 1 else bias * vector[:, 0]

    def refuses_method(self, method: str) -> str:
        if method == "fedavg":
            return ""
        return "it works on the factors A and B, and IA3 has none: its vectors are averaged, exactly, by fedavg"

    def config_of(self, peft_config: Mapping[str, Any], own: Extras) -> LoraConfig:
        if not own:
            raise AdapterError(f"expected {WORD} of some modules, got none; save the adapter again with PEFT")
        targets = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules_of(own)))
        return LoraConfig(method=self.name, target_modules=targets)

    def peft_config(self, adapter: Adapter, fresh: dict[str, Any]) -> dict[str, Any]:
        """PEFT knows by names which vectors are of an input: by their ends where these tell them apart, else in full."""
        own = own_tensors(adapter, self)
        modules, inputs = modules_of(own), [name.rpartition(".")[0] for name, array in own.items() if len(array) == 1]
        # IA3Config has no layers_to_transform.
        targets = modules if "layers_to_transform" in fresh else list(fresh["target_modules"])
        feedforward = [t for t in targets if all(module in inputs for module in modules if _ends(module, t))]
        if {module for module in modules if any(_ends(module, t) for t in feedforward)} != set(inputs):
            targets, feedforward = modules, inputs
        kept = (
            "task_type",
            "auto_mapping",
            "base_model_name_or_path",
            "inference_mode",
            "modules_to_save",
            "fan_in_fan_out",
        )
        return {
            **{key: fresh[key] for key in kept if key in fresh},
            "peft_type": self.peft_type,
            "target_modules": targets,
            "feedforward_modules": feedforward,
            "init_ia3_weights": True,
        }


def is_feedforward(module: str) -> bool:
    """Whether the vector of a module is of its input."""
    return any(_ends(module, end) for end in _FEEDFORWARD)


def _ends(module: str, end: str) -> bool:
    return module == end or module.endswith(f".{end}")
