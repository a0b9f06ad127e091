"""Factors of an encoder's modules that take none: what the module is is told, and what is advised works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError
from fedlora.peft.for_base import adapter_of

from tests.tiny.encoders import EVERY, encoder_pack
from tests.tiny.packs import checkpoint_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers', of what PEFT asks it


def saved(trained_as: str, base: BasePack, directory: Path, **options: Any) -> dict[str, Any]:
    """An adapter that PEFT trained on a model of the class `trained_as`; {module without its prefix: B A}."""
    model = EVERY[trained_as][0].from_pretrained(checkpoint_of(base.directory))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    wrapped.save_pretrained(str(directory))
    return products({n: m.get_delta_weight("default").detach().numpy() for n, m in wrapped.named_modules()
                     if isinstance(m, peft.tuners.lora.Linear)})  # fmt: skip


def products(by_module: dict[str, Any]) -> dict[str, Any]:
    """Those of the blocks, by the names that every class shares."""
    return {n[n.index("layer."):]: product for n, product in by_module.items() if "layer." in n}  # fmt: skip


def read(directory: Path, base: BasePack) -> dict[str, Any]:
    adapter, _ = adapter_of(directory, base)
    return products({module: adapter.product(module).dense() for module in adapter.pairs})


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for module, product in first.items():
        np.testing.assert_allclose(product, second[module], atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("of_base", "of_adapter"), [("", "bare "), ("bare ", "")])
def test_an_adapter_of_the_other_kind_of_model_is_read_once_it_is_renamed_as_advised(
    family: str, of_base: str, of_adapter: str, tmp_path: Path, advised: Any
) -> None:
    base = encoder_pack(of_base + family)
    target = ["q_lin", "out_lin"] if family == "distilbert" else ["query", "value"]
    theirs = saved(of_adapter + family, base, tmp_path / "peft", target_modules=target)
    with pytest.raises(AdapterMismatchError, match=r"and this base calls it .*layer.0") as refused:
        adapter_of(tmp_path / "peft", base)
    advised(str(refused.value), tmp_path / "peft")
    same(read(tmp_path / "peft", base), theirs)


def test_all_linear_modules_of_a_bare_bert_are_read_without_its_pooler(tmp_path: Path, advised: Any) -> None:
    base = encoder_pack("bare bert")
    theirs = saved("bare bert", base, tmp_path / "peft", target_modules="all-linear")
    with pytest.raises(
        AdapterMismatchError, match=r"pooler\.dense, which no embedding of this base comes from"
    ) as refused:
        adapter_of(tmp_path / "peft", base)
    advised(str(refused.value), tmp_path / "peft")
    same(read(tmp_path / "peft", base), theirs)


def test_lora_on_the_head_is_told_and_excluded_as_advised(tmp_path: Path) -> None:
    base = encoder_pack("bert")
    saved("bert", base, tmp_path / "peft", target_modules=["dense"])
    with pytest.raises(AdapterMismatchError, match=r"exclude_modules=\['bert.pooler.dense'\] in LoraConfig"):
        adapter_of(tmp_path / "peft", base)
    theirs = saved("bert", base, tmp_path / "again", target_modules=["dense"], exclude_modules=["bert.pooler.dense"])
    same(read(tmp_path / "again", base), theirs)
