"""Starts from the base's weights are those of PEFT's `init_lora_weights`, and what takes them back leaves the base."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import peft
import pytest
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.base.starts import Init, started, taken_back
from fedlora.config.run import LoraSection, RunConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import joined

from tests.reference.oracles import oracle
from tests.tiny.adapters import leaves_of

INITS: tuple[Init, ...] = ("pissa", "olora")


def peft_started(base: BasePack, config: LoraConfig, init: str) -> Any:
    theirs = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, use_rslora=config.use_rslora, target_modules=list(config.target_modules),
        init_lora_weights=init,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(oracle(base), theirs)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", INITS)
def test_the_factors_are_those_of_peft(base: BasePack, init: Init, use_rslora: bool) -> None:
    config = LoraConfig(rank=4, alpha=6.0, use_rslora=use_rslora, target_modules=leaves_of(base))
    first = initial_adapter(config, base.model.linear_modules(), np.random.default_rng(0))
    ours, theirs = started(first, base, init), peft_started(base, config, init)
    for module, pair in ours.pairs.items():
        layer = theirs.base_model.model.get_submodule(module)
        lora_A, lora_B = (layer.__getattr__(f"lora_{which}")["default"].weight.detach().numpy() for which in "AB")
        # A singular vector has no sign of its own: rows of A and columns of B are compared with one that agrees.
        signs = np.sign(np.sum(lora_B * pair.lora_B, 0))
        np.testing.assert_allclose(pair.lora_B * signs, lora_B, rtol=1e-3, atol=1e-4, err_msg=module)
        np.testing.assert_allclose(pair.lora_A * signs[:, None], lora_A, rtol=1e-3, atol=1e-4, err_msg=module)
        # What PEFT trains on in place of W is W with the start taken back.
        rest = dequantize(base.matrix(module)) + taken_back(ours).product(module).dense()
        np.testing.assert_allclose(rest, layer.base_layer.weight.detach(), rtol=1e-3, atol=1e-4, err_msg=module)


@pytest.mark.parametrize("init", INITS)
def test_a_start_that_is_taken_back_changes_nothing(base: BasePack, init: Init) -> None:
    config = LoraConfig(rank=4, alpha=6.0, target_modules=leaves_of(base))
    first = initial_adapter(config, base.model.linear_modules(), np.random.default_rng(0))
    start = started(first, base, init)
    both = joined(start, taken_back(start))
    for module in both.pairs:
        assert np.abs(start.product(module).dense()).max() > 1e-2
        np.testing.assert_allclose(both.product(module).dense(), 0, atol=1e-5)


def test_the_default_is_the_adapter_itself(base: BasePack) -> None:
    first = initial_adapter(
        LoraConfig(rank=4, target_modules=("q_proj",)), base.model.linear_modules(), np.random.default_rng(0)
    )
    assert started(first, base, "default") is first


def test_a_rank_that_a_weight_does_not_have_is_refused(base: BasePack) -> None:
    config = LoraConfig(rank=40, target_modules=("k_proj",))
    first = initial_adapter(config, base.model.linear_modules(), np.random.default_rng(0))
    with pytest.raises(
        ConfigError, match=r"lora.init = pissa: model.layers.0.self_attn.k_proj has 32 directions, lora.rank"
    ):
        started(first, base, "pissa")


def test_a_federation_refuses_it_and_another_word_is_refused_with_those_that_are_known(base: BasePack) -> None:
    with pytest.raises(ConfigError, match=r"lora.init = pissa is for one device alone, with fedlora train; a run of"):
        RunConfig(lora=LoraSection(init="pissa")).first_adapter(base)
    with pytest.raises(ConfigError, match=r"lora.init must be one of default, pissa, olora"):
        LoraSection(init="gaussian")
