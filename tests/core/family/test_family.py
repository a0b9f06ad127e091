"""What a config.json says, and which are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fedlora.errors import CheckpointError
from fedlora.family import LINEAR_MODULES, EncoderShape, decoder_shape, model_shape

from tests.tiny.checkpoints import LLAMA, llama_config, llama_shape


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
    assert llama_shape(**changes).rotary.frequencies == tuple(5000.0 ** (-i / 8) for i in (0, 2, 4, 6))


def test_the_rotary_table_equals_its_formula_one_angle_at_a_time() -> None:
    shape = llama_shape()
    cos, sin = shape.rotary.table(shape.max_positions)
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
    assert list(norms)[-1] == "model.norm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture GPT2LMHeadModel is not supported; expected one of LlamaForCausalLM, ",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"architectures": "GPT2LMHeadModel"}, "architecture"),
        ({"architectures": 5}, "architecture"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        (
            {"rope_scaling": {"type": "proportional", "factor": 2.0}},
            "rope_type is 'proportional'; expected one of default",
        ),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; only 1"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "not a sound config.json"),
        ({"architectures": ["Gemma2ForCausalLM"], "attention_bias": True}, "attention_bias is True; only False"),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"]}, "for each of 2 layers"),
        (
            {"architectures": ["Gemma2ForCausalLM"], "layer_types": ["chunked", "full_attention"]},
            "layer_types must name",
        ),
        ({"rope_scaling": "linear"}, "rope"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected one of silu"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "wide"}, "not a sound config.json"),
        ({"hidden_size": [32]}, "not a sound config.json"),
        ({"hidden_size": math.inf}, "not a sound config.json"),
        ({"hidden_size": math.nan}, "not a sound config.json"),
        ({"hidden_size": "32"}, "a size must be an integer, got '32'"),
        ({"hidden_size": 32.5}, "a size must be an integer, got 32.5"),
        ({"num_hidden_layers": True}, "a size must be an integer, got True"),
        ({"max_position_embeddings": "64"}, "a size must be an integer, got '64'"),
        ({"head_dim": 8.5}, "a size must be an integer, got 8.5"),
        ({"rms_norm_eps": "1e-5"}, "a constant must be a number, got '1e-5'"),
        ({"rope_theta": True}, "a constant must be a number, got True"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "a constant must be a number, got '2'"),
        ({"num_attention_heads": 0, "head_dim": None}, "not a sound config.json"),
        ({"num_hidden_layers": 0}, "expected positive sizes"),
        ({"intermediate_size": -1}, "expected positive sizes"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) a multiple of num_key_value_heads (3)"),
        ({"head_dim": 7}, "head_dim (7) even"),
        ({"head_dim": -8}, "head_dim (-8)"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": (1 << 22) + 1}, "max_positions is 4.19e+06; at most 4194304 is read"),
    ],
)
def test_a_config_that_is_not_a_plain_llama_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        decoder_shape(llama_config(**changes), "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert message in str(caught.value)


def test_the_shape_is_indifferent_to_the_order_of_the_keys() -> None:
    assert decoder_shape(dict(reversed(list(LLAMA.items()))), "x") == llama_shape()


FAMILY: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"sliding_window": 16},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "Phi3ForCausalLM": {},
    "Gemma2ForCausalLM": {"sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "Gemma3ForCausalLM": {"sliding_window": 16, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0},
}


@pytest.mark.parametrize("architecture", FAMILY)
def test_every_family_says_how_it_varies(architecture: str) -> None:
    shape = llama_shape(architectures=[architecture], **FAMILY[architecture])
    leaves = {module.rsplit(".", 1)[-1] for module in shape.linear_modules()}
    joined = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert leaves == (joined if architecture == "Phi3ForCausalLM" else set(LINEAR_MODULES))
    assert shape.windows == {"Mistral": (16, 16), "Gemma2F": (16, 0), "Gemma3F": (16, 0)}.get(architecture[:7], ())
    assert shape.is_biased("model.layers.0.self_attn.q_proj") == (architecture == "Qwen2ForCausalLM")
    assert shape.qk_norm == (architecture in ("Qwen3ForCausalLM", "Gemma3ForCausalLM"))
    gemma = architecture.startswith("Gemma")
    assert len(shape.norm_modules()) == 2 * ((4 if gemma else 2) + (2 if shape.qk_norm else 0)) + 1
    assert (shape.norm_offset, shape.activation) == ((1.0, "gelu_tanh") if gemma else (0.0, "silu"))
    assert (shape.attention_cap, shape.logit_cap) == ((50.0, 30.0) if architecture == "Gemma2ForCausalLM" else (0, 0))
    assert (shape.rotary_of(0) != shape.rotary_of(1)) == (architecture == "Gemma3ForCausalLM")


def test_a_window_that_holds_the_whole_context_is_none() -> None:
    assert llama_shape(architectures=["MistralForCausalLM"], sliding_window=64).windows == ()


def test_modules_that_read_the_same_input_are_one_group() -> None:
    groups = llama_shape().linear_groups()
    assert [len(group) for group in groups] == [3, 1, 2, 1] * 2
    assert [module for group in groups for module in group] == list(llama_shape().linear_modules())


def test_a_head_of_labels_is_named_by_the_config() -> None:
    encoder = {
        "architectures": ["BertForSequenceClassification"], "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16, "id2label": {"1": "b", "0": "a"},
    }  # fmt: skip
    shape = model_shape(encoder, "here")
    assert isinstance(shape, EncoderShape)
    assert shape.labels == ("a", "b")
    assert shape.module(0, "query") == "bert.encoder.layer.0.attention.self.query"
    with pytest.raises(CheckpointError, match="BertForSequenceClassification is an encoder; expected LlamaForCausalLM"):
        decoder_shape(encoder, "here")
