"""Every kind of rotation, as config.json may say it, beside what transformers computes from the same config.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedlora.family import decoder_shape
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 100, "max_position_embeddings": 4096, "pad_token_id": None, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "phi3": "Phi3ForCausalLM"}
_SHORT, _LONG = np.linspace(1, 2, 8).tolist(), np.linspace(2, 9, 8).tolist()
_FACTORS = {"short_factor": _SHORT, "long_factor": _LONG}
ORIGINAL = "original_max_position_embeddings"

# {what config.json says: (model type, its fields)}
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 3.0}}),
    "linear, theta beside": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5e5}),
    "theta in both": (
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}, "rope_theta": 5e5},
    ),
    "both names": (
        "llama", {
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "llama3": (
        "llama", {"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 1024,
        }},
    ),
    "llama3, original untold": (
        "llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ),
    "llama3, original in both": (
        "llama", {ORIGINAL: 512, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 1024,
        }},
    ),
    "yarn": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 1024}}),
    "yarn, original untold": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "yarn, original beside": ("qwen2", {ORIGINAL: 512, "rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 1024}}),
    "yarn, factor null": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": None, ORIGINAL: 1024}}),
    "yarn, another factor than the ratio": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 2.0, ORIGINAL: 512}}),
    "yarn, betas and magnitudes": (
        "qwen2", {"rope_scaling": {
            "type": "yarn", "factor": 4.0, ORIGINAL: 1024, "beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.7,
            "mscale_all_dim": 1.2, "truncate": False,
        }},
    ),
    "yarn, attention_factor": (
        "qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 1024, "attention_factor": 1.25}},
    ),
    "longrope": ("llama", {"rope_scaling": {"rope_type": "longrope", **_FACTORS, ORIGINAL: 1024}}),
    "longrope, factor": ("llama", {"rope_scaling": {"rope_type": "longrope", **_FACTORS, ORIGINAL: 1024, "factor": 32.0}}),
    "longrope, factor below one": (
        "llama", {"rope_scaling": {"rope_type": "longrope", **_FACTORS, ORIGINAL: 1024, "factor": 0.5}},
    ),
    "longrope, factor and original beside": (
        "llama", {ORIGINAL: 512, "rope_scaling": {"rope_type": "longrope", **_FACTORS, ORIGINAL: 1024, "factor": 16.0}},
    ),
    "longrope, original untold": ("llama", {"rope_scaling": {"rope_type": "longrope", **_FACTORS, "factor": 4.0}}),
    "longrope, attention_factor": (
        "llama", {"rope_scaling": {"rope_type": "longrope", **_FACTORS, ORIGINAL: 1024, "attention_factor": 1.3}},
    ),
    "phi3, longrope": ("phi3", {ORIGINAL: 1024, "rope_scaling": {"type": "longrope", **_FACTORS}}),
    "phi3, longrope with its factor": (
        "phi3", {ORIGINAL: 1024, "rope_scaling": {"type": "longrope", **_FACTORS, "factor": 32.0}},
    ),
    "phi3, yarn, which was longrope": ("phi3", {ORIGINAL: 1024, "rope_scaling": {"type": "yarn", **_FACTORS}}),
    "phi3, original untold": (
        "phi3", {"max_position_embeddings": 16384, "rope_scaling": {"type": "longrope", **_FACTORS}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_frequencies_and_magnitude_are_those_of_transformers(what: str) -> None:
    model_type, said = SAID[what]
    fields = {**_SIZES, **said}
    config = AutoConfig.for_model(model_type, **{key: _copy(value) for key, value in fields.items()})
    kind = config.rope_parameters["rope_type"]
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    shape = decoder_shape({**fields, "model_type": model_type, "architectures": [_ARCHITECTURES[model_type]]}, what)
    np.testing.assert_allclose(shape.rotary.frequencies, frequencies.numpy(), rtol=2e-6)
    assert shape.rotary.magnitude == pytest.approx(magnitude, rel=1e-6)


def test_the_oldest_name_of_longrope_is_longrope() -> None:
    """Current versions of transformers take it and fail; the first checkpoints of Phi-3 have it."""
    fields = {**_SIZES, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], ORIGINAL: 1024}
    old, new = (
        decoder_shape({**fields, "rope_scaling": {"type": name, **_FACTORS}}, name) for name in ("su", "longrope")
    )
    assert old == new


def _copy(value: Any) -> Any:
    """transformers changes the tables that it is given."""
    return dict(value) if isinstance(value, dict) else value
