"""What a config.json says, and which are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fedlora.errors import CheckpointError
from fedlora.family import LINEAR_MODULES, decoder_shape

from tests.builders import LLAMA, llama_config, llama_shape


def test_the_sizes_are_those_of_the_config() -> None:
    shape = llama_shape()
    assert (shape.hidden_size, shape.intermediate_size, shape.num_layers) == (32, 72, 2)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (4, 2, 8)
    assert (shape.vocab_size, shape.max_positions, shape.rms_norm_eps) == (264, 64, 1e-5)
    assert (shape.bos_token_id, shape.eos_token_ids) == (1, (2,))


def test_what_a_config_leaves_out_follows_from_what_it_has() -> None:
    bare = llama_config(num_key_value_heads=None, head_dim=None, eos_token_id=None, bos_token_id=None)
    shape = decoder_shape(bare, "bare")
    assert (shape.num_kv_heads, shape.head_dim, shape.eos_token_ids, shape.bos_token_id) == (4, 8, (), None)


def test_several_end_tokens_are_kept() -> None:
    assert llama_shape(eos_token_id=[1, 2]).eos_token_ids == (1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5000.0},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_theta": 5000.0}},
    ],
)
def test_rope_theta_is_read_where_either_version_of_transformers_puts_it(changes: dict[str, Any]) -> None:
    assert llama_shape(**changes).rope_theta == 5000.0


def test_the_rotary_table_equals_its_formula_one_angle_at_a_time() -> None:
    shape = llama_shape()
    cos, sin = shape.rotary_table()
    assert cos.shape == sin.shape == (64, 4)
    for position in (0, 1, 63):
        for i in range(4):
            angle = position * 10000.0 ** (-2 * i / 8)
            assert math.isclose(cos[position, i], math.cos(angle), abs_tol=1e-6)
            assert math.isclose(sin[position, i], math.sin(angle), abs_tol=1e-6)
    assert cos.dtype == np.float32


def test_every_linear_module_stands_once_per_layer_with_its_shape() -> None:
    modules = llama_shape().linear_modules()
    assert len(modules) == 2 * len(LINEAR_MODULES)
    assert modules["model.layers.1.self_attn.k_proj"] == (16, 32)
    assert modules["model.layers.0.self_attn.o_proj"] == (32, 32)
    assert modules["model.layers.0.mlp.down_proj"] == (32, 72)


def test_a_head_that_is_not_tied_is_a_module_of_its_own() -> None:
    assert list(llama_shape().vocabulary_modules()) == ["model.embed_tokens"]
    assert llama_shape(tie_word_embeddings=False).vocabulary_modules()["lm_head"] == (264, 32)


def test_there_are_two_norms_per_layer_and_one_at_the_end() -> None:
    norms = llama_shape().norm_modules()
    assert len(norms) == 5
    assert norms[-1] == "model.norm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported; expected Llama"),
        ({"architectures": None}, "architecture none is not supported"),
        ({"architectures": "GPT2LMHeadModel"}, "architecture"),
        ({"architectures": 5}, "architecture"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'; only 'default'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'; only 'default'"),
        ({"rope_scaling": "linear"}, "rope"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True; only False"),
        ({"mlp_bias": True}, "mlp_bias is True; only False"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "wide"}, "not a Llama config.json"),
        ({"hidden_size": [32]}, "not a Llama config.json"),
        ({"hidden_size": math.inf}, "not a Llama config.json"),
        ({"hidden_size": math.nan}, "not a Llama config.json"),
        ({"num_attention_heads": 0, "head_dim": None}, "not a Llama config.json"),
        ({"num_hidden_layers": 0}, "expected positive sizes"),
        ({"intermediate_size": -1}, "expected positive sizes"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) a multiple of num_key_value_heads (3)"),
        ({"head_dim": 7}, "head_dim (7) even"),
        ({"head_dim": -8}, "head_dim (-8)"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)
def test_a_config_that_is_not_a_plain_llama_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        decoder_shape(llama_config(**changes), "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert message in str(caught.value)


def test_the_shape_is_indifferent_to_the_order_of_the_keys() -> None:
    assert decoder_shape(dict(reversed(list(LLAMA.items()))), "x") == llama_shape()
