"""Adapters of other kinds than LoRA, and with heads: what has a sum is summed, as PEFT does it, and the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack
from fedlora.cli import commands
from fedlora.combine.combining import combine, combined_adapter
from fedlora.combine.sources import open_source
from fedlora.combine.ways import Combination
from fedlora.config.run import LoraSection
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import BY_NAME, kind_of
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft

from tests.core.combine.peft_combination import COMBINED, quietly
from tests.reference.oracles import oracle
from tests.reference.tolerances import TOLERANCE
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import encoder_pack
from tests.tiny.kinds import adapter_of_kind

Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes adapters as PEFT directories; their places."""

    def written(base: BasePack, *adapters: Adapter) -> list[Path]:
        places = [tmp_path / f"adapter-{number}" for number in range(len(adapters))]
        for place, adapter in zip(places, adapters, strict=True):
            content = PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint)
            write_peft(place, content, base_name="base", replace=place.exists())
        return places

    return written


def made(
    places: Sequence[Path], weights: tuple[float, ...], how: Any = "linear", base: BasePack | None = None
) -> Adapter:
    combine(places, places[0].parent / "made", Combination(weights=weights, how=how), base=base, replace=True)
    return read_peft(places[0].parent / "made", any_kind=True).adapter


def assert_summed(got: Adapter, parts: Sequence[Adapter], weights: Sequence[float]) -> None:
    assert got.extras.keys() == parts[0].extras.keys()
    for name, value in got.extras.items():
        expected = sum(weight * part.extras[name] for weight, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(value, expected, **TOLERANCE["float32"], err_msg=name)


def test_a_sum_of_ia3_has_the_numbers_of_peft(base: BasePack, write: Write) -> None:
    places, weights = write(base, *(adapter_of_kind("ia3", base, seed) for seed in (1, 2))), (0.7, -0.4)
    ours = made(places, weights)
    with quietly():
        model = peft.PeftModel.from_pretrained(oracle(base), str(places[0]), adapter_name="0")
        model.load_adapter(str(places[1]), adapter_name="1")
        model.add_weighted_adapter(["0", "1"], list(weights), COMBINED)
    for name, value in ours.extras.items():
        layer = model.base_model.model.get_submodule(name.rpartition(".")[0])
        theirs = layer.ia3_l[COMBINED].detach().numpy()
        np.testing.assert_allclose(value, theirs, **TOLERANCE["float32"], err_msg=name)
    content = read_peft(places[0].parent / "made", any_kind=True)
    assert content.base_fingerprint == base.fingerprint
    assert content.origin is not None
    assert [part.weight for part in content.origin.parts] == list(weights)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "vera"])
def test_what_is_not_linear_has_a_mean_of_its_numbers_and_no_other_sum(base: BasePack, write: Write, kind: str) -> None:
    adapters = [adapter_of_kind(kind, base, seed) for seed in (1, 2, 3)]
    places, weights = write(base, *adapters), (0.5, 0.8, -0.3)
    assert_summed(made(places, weights), adapters, weights)
    assert_summed(
        combined_adapter([open_source(place) for place in places], Combination(weights=weights, how="linear")),
        adapters,
        weights,
    )
    with pytest.raises(
        ConfigError, match=rf"--weights: add up to 1.5; {BY_NAME[kind].title} is not linear in its numbers"
    ):
        made(places, (0.5, 0.5, 0.5))


def test_vera_and_lora_add_up_as_products_where_the_base_is_given(base: BasePack, write: Write) -> None:
    vera = [adapter_of_kind("vera", base, seed) for seed in (1, 2)]
    plain = random_adapter(base)
    places, weights = write(base, *vera, plain), (0.7, -1.5, 0.25)
    got = made(places, weights, "cat", base)
    assert got.config.method == "lora"
    as_lora = [kind_of(one).as_lora(one, base.model) for one in vera]
    for module in base.model.linear_modules():
        parts = [*(one.product(module).dense() for one in as_lora if one), plain.product(module).dense()]
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(got.product(module).dense(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        AdapterMismatchError, match=r"what VeRA is as LoRA depends on the sizes of the base; pass --base"
    ):
        made(places, weights, "cat")
    with pytest.raises(
        AdapterMismatchError, match=r"adapter-2: is LoRA, and .*adapter-0 is VeRA; .* take --how cat or svd"
    ):
        made(places, weights, "linear", base)


def shorter(base: BasePack) -> Adapter:
    return adapter_of_kind("prompt", base, 2, LoraSection(method="prompt", num_virtual_tokens=2))


def narrower(base: BasePack) -> Adapter:
    return adapter_of_kind("ia3", base, 2, LoraSection(method="ia3", target_modules=("k_proj",)))


def of_another_key(base: BasePack) -> Adapter:
    adapter = adapter_of_kind("vera", base, 2)
    config = LoraConfig(method="vera", rank=4, projection_prng_key=5, target_modules=adapter.config.target_modules)
    return Adapter(config, {}, extras=adapter.extras)


@pytest.mark.parametrize(
    ("kind", "other", "how", "error", "told"),
    [
        ("dora", None, "svd", AdapterError, r"use_dora is set: DoRA is not combined: each row's length belongs to one"),
        ("ia3", None, "cat", ConfigError, r"--how cat: .*adapter-0 is IA3, which has no products; .* take --how linear"),
        ("ia3", narrower, "linear", AdapterMismatchError, r"ia3_l is not there, in .*adapter-0 it is \[.*number by number"),
        ("prompt", shorter, "linear", AdapterMismatchError, r"prompt_embeddings is \[2, .*\], in .*adapter-0 it is \[3, "),
        ("ia3", shorter, "linear", AdapterMismatchError, r"adapter-1: is prompt tuning, and .*adapter-0 is IA3; expected"),
        ("vera", of_another_key, "linear", AdapterMismatchError, r"projection_prng_key = 5, those of .*adapter-0 of 0;"),
    ],
)  # fmt: skip
def test_what_has_no_sum_is_refused_by_name(
    base: BasePack,
    write: Write,
    kind: str,
    other: Callable[[BasePack], Adapter] | None,
    how: str,
    error: type,
    told: str,
) -> None:
    one = adapter_of_kind(kind, base)
    places = write(base, one, other(base) if other else one)
    with pytest.raises(error, match=told):
        made(places, (0.5, 0.5), how)
    assert not (places[0].parent / "made").exists()


def test_the_command_adds_up_what_has_no_products_without_being_told_how(base: BasePack, write: Write) -> None:
    for kind, told in (("ia3", "linear; IA3 of 6 modules"), ("prompt", "linear; prompt tuning of 3 virtual tokens")):
        adapters = [adapter_of_kind(kind, base, seed) for seed in (1, 2)]
        places = write(base, *adapters)
        output = places[0].parent / "made"
        result = CliRunner().invoke(commands, ["combine", *map(str, places), "-o", str(output), "--force"])
        assert result.exit_code == 0, result.exception
        assert result.stderr == f"{output}: {told}\n"
        assert_summed(read_peft(output, any_kind=True).adapter, adapters, (0.5, 0.5))


def with_head(base: BasePack, seed: int, labels: int = 3) -> Adapter:
    generator = np.random.default_rng(seed)
    sizes = {name: [labels if n == -1 else n for n in shape] for name, shape in base.model.head_inputs().items()}
    head = {name: generator.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    return with_extras(random_adapter(base, seed=seed), head)


@pytest.mark.parametrize("how", ["svd", "cat", "linear"])
def test_heads_for_as_many_labels_add_up_whatever_becomes_of_the_products(write: Write, how: Any) -> None:
    base, weights = encoder_pack("bert"), (0.75, 0.5)
    adapters = [with_head(base, seed) for seed in (1, 2)]
    places = write(base, *adapters)
    got = made(places, weights, how)
    assert_summed(got, adapters, weights)
    assert_summed(
        combined_adapter([open_source(place) for place in places], Combination(weights=weights, how=how)),
        adapters,
        weights,
    )
    config = json.loads((places[0].parent / "made" / "adapter_config.json").read_text())
    theirs = json.loads((places[0] / "adapter_config.json").read_text())
    for key in ("task_type", "modules_to_save", "target_modules"):
        assert config[key] == theirs[key], key
    if how == "cat":
        for module, pair in adapters[0].pairs.items():
            assert got.pairs[module].rank == 2 * pair.rank


def test_heads_of_other_labels_or_of_some_alone_are_refused(write: Write) -> None:
    base = encoder_pack("bert")
    other_labels, none = with_head(base, 2, labels=5), random_adapter(base)
    for other, told in ((other_labels, r"a head with .*classifier.bias \[5\]"), (none, "no head")):
        places = write(base, with_head(base, 1), other)
        with pytest.raises(
            AdapterMismatchError, match=rf"adapter-1: has {told}.*adapter-0 has a head with .*\[3\].*as many"
        ):
            made(places, (0.5, 0.5))
