"""The configuration of an adapter."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fedlora.errors import ConfigError
from fedlora.lora.config import MAX_RANK, LoraConfig

from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape().linear_modules()
UP = "model.layers.0.mlp.up_proj"


def test_scaling_is_alpha_over_rank() -> None:
    assert LoraConfig(rank=8, alpha=32.0).scaling_of(UP) == 4.0


def test_rslora_scales_by_alpha_over_the_root_of_rank() -> None:
    assert LoraConfig(rank=16, alpha=32.0, use_rslora=True).scaling_of(UP) == 8.0


def test_a_pattern_gives_one_module_a_rank_and_an_alpha_of_its_own() -> None:
    config = LoraConfig(rank=8, alpha=16.0, rank_pattern={UP: 4}, alpha_pattern={UP: 2.0})
    assert (config.rank_of(UP), config.scaling_of(UP)) == (4, 0.5)
    assert (config.rank_of("other"), config.scaling_of("other")) == (8, 2.0)


def test_targets_are_the_modules_whose_last_name_is_one_in_the_models_order() -> None:
    assert LoraConfig(target_modules=("up_proj", "q_proj")).targets(MODULES) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_a_target_that_the_model_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match="the base has no c_attn; it has down_proj, gate_proj, k_proj, o_proj"):
        LoraConfig(target_modules=("c_attn", "q_proj")).targets(MODULES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, f"rank: a rank must be an integer from 1 to {MAX_RANK}, got 0"),
        ({"rank": MAX_RANK + 1}, f"got {MAX_RANK + 1}"),
        ({"rank": 2.0}, "got 2.0"),
        ({"rank": True}, "got True"),
        ({"rank_pattern": {"up_proj": 0}}, "up_proj: a rank must be an integer"),
        ({"alpha": 0}, "alpha: an alpha must be a positive number, got 0"),
        ({"alpha": -1.0}, "got -1.0"),
        ({"alpha": math.nan}, "got nan"),
        ({"alpha": math.inf}, "got inf"),
        ({"alpha": "16"}, "got '16'"),
        ({"alpha": True}, "got True"),
        ({"alpha": None}, "got None"),
        ({"alpha_pattern": {"up_proj": -2}}, "up_proj: an alpha must be a positive number, got -2"),
        ({"target_modules": ()}, "target_modules must name at least one module"),
        ({"target_modules": ("q_proj", "q_proj")}, "each once"),
        ({"use_rslora": "no"}, "use_rslora"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**values)
    assert message in str(caught.value)


def test_an_integer_alpha_that_no_float_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="an alpha must be a positive number"):
        LoraConfig(alpha=10**400)


def test_a_config_keeps_no_hold_on_the_patterns_it_was_given() -> None:
    ranks = {UP: 4}
    config = LoraConfig(rank_pattern=ranks)
    ranks[UP] = 9
    assert config.rank_of(UP) == 4
    with pytest.raises(TypeError):
        config.rank_pattern[UP] = 5  # type: ignore[index]


def test_configs_of_equal_values_are_equal() -> None:
    assert LoraConfig(rank_pattern={UP: 4, "b": 1}) == LoraConfig(rank_pattern={"b": 1, UP: 4})
    assert LoraConfig(rank_pattern={UP: 4}) != LoraConfig(rank_pattern={UP: 5})
