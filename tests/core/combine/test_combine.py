"""Adapters are combined as PEFT's `add_weighted_adapter` combines them, and what it cannot combine is refused."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.base.heads import initial_extras
from fedlora.base.pack import BasePack
from fedlora.combine.combining import Combined, combine
from fedlora.combine.merging import dropped, largest
from fedlora.combine.ways import WAYS, Combination
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError
from fedlora.files.tensor_file import Dtype
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft

from tests.core.combine.peft_combination import COMBINED, combined_by_peft, layer_of, model_with, quietly
from tests.reference.tolerances import TOLERANCE
from tests.tiny.adapters import ALL_RANKS, adapter_on, random_adapter
from tests.tiny.checkpoints import llama_shape, tree
from tests.tiny.encoders import encoder_pack

MODULES = llama_shape().linear_modules()
ONE, OTHER = LoraConfig(rank=4, alpha=8.0), LoraConfig(rank=4, alpha=3.0)
NARROW = LoraConfig(rank=4, alpha=2.0, target_modules=("q_proj", "down_proj"))
MIXED = [ALL_RANKS, LoraConfig(rank=8, alpha=5.0), LoraConfig(rank=3, alpha=7.0, target_modules=("v_proj", "up_proj"))]
OF_FACTORS = [how for how in WAYS if not how.endswith("svd") and how != "cat"]
OF_PRODUCTS = [how for how in WAYS if how not in OF_FACTORS]
FIRST = next(iter(MODULES))

Written = Callable[..., list[Path]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes an adapter of each configuration; the directories."""

    def write(*configs: LoraConfig, fingerprint: str | None = "f" * 64, **content: Any) -> list[Path]:
        places = []
        for seed, config in enumerate(configs):
            places.append(tmp_path / f"adapter-{seed}")
            adapter = adapter_on(config, MODULES, seed)
            write_peft(places[-1], PeftDirectory(adapter=adapter, base_fingerprint=fingerprint, **content))
        return places

    return write


def options_of(how: str, density: float = 0.3) -> dict[str, Any]:
    """What a way must be told."""
    return {"density": density} if how.startswith(("ties", "dare", "magnitude")) else {}


def made(places: list[Path], weights: tuple[float, ...], how: Any, **options: Any) -> tuple[Adapter, Combined]:
    output = places[0].parent / f"made-{how}"
    told = combine(places, output, Combination(weights=weights, how=how, **options), replace=True)
    return read_peft(output).adapter, told


@pytest.mark.parametrize("weights", [(0.7, 0.3, 0.5), (1.0, -0.6, 0.2)], ids=("added", "one taken away"))
@pytest.mark.parametrize("how", OF_FACTORS)
def test_a_way_that_combines_factors_gives_those_of_peft(
    written: Written, how: str, weights: tuple[float, ...]
) -> None:
    places = written(ONE, OTHER, NARROW)
    ours, _ = made(places, weights, how, **options_of(how))
    theirs = combined_by_peft(places, weights, how, **options_of(how))
    for module, pair in ours.pairs.items():
        layer = layer_of(theirs, module)
        np.testing.assert_allclose(pair.lora_A, layer.lora_A[COMBINED].weight, **TOLERANCE["float32"], err_msg=module)
        np.testing.assert_allclose(pair.lora_B, layer.lora_B[COMBINED].weight, **TOLERANCE["float32"], err_msg=module)
        assert ours.config.scaling_of(module) == layer.scaling[COMBINED] == 1


@pytest.mark.parametrize("weights", [(0.7, 0.3, 0.5), (1.0, -0.6, 0.2)], ids=("added", "one taken away"))
@pytest.mark.parametrize("how", OF_PRODUCTS)
def test_a_way_that_combines_products_gives_those_of_peft_for_any_ranks_and_modules(
    written: Written, how: str, weights: tuple[float, ...]
) -> None:
    places = written(*MIXED)
    ours, _ = made(places, weights, how, **options_of(how))
    theirs = combined_by_peft(places, weights, how, **options_of(how))
    for module in MODULES:
        expected = layer_of(theirs, module).get_delta_weight(COMBINED).detach()
        got = ours.product(module).dense()
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5, err_msg=module)


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("how", ["ties", "ties-svd", "dare-ties", "dare-ties-svd"])
def test_signs_are_elected_either_way_as_peft_elects_them(written: Written, how: str, method: Any) -> None:
    places, weights = written(ONE, OTHER, replace(ONE, alpha=1.0)), (1.0, 0.5, 2.0)
    options = {**options_of(how, 0.6), "majority_sign_method": method}
    ours, _ = made(places, weights, how, **options)
    theirs = combined_by_peft(places, weights, how, **options)
    for module in MODULES:
        expected = layer_of(theirs, module).get_delta_weight(COMBINED).detach()
        np.testing.assert_allclose(ours.product(module).dense(), expected, rtol=1e-3, atol=1e-5, err_msg=module)


@pytest.mark.parametrize("rank", [2, 6])
def test_a_rank_that_is_asked_for_is_the_one_that_peft_cuts_to(written: Written, rank: int) -> None:
    places = written(ONE, OTHER)
    ours, _ = made(places, (1.0, 0.5), "svd", svd_rank=rank)
    theirs = combined_by_peft(places, (1.0, 0.5), "svd", svd_rank=rank)
    for module in MODULES:
        assert ours.pairs[module].rank == rank
        expected = layer_of(theirs, module).get_delta_weight(COMBINED).detach()
        np.testing.assert_allclose(ours.product(module).dense(), expected, rtol=1e-3, atol=1e-5, err_msg=module)


def test_seeds_drop_other_entries_and_the_same_seed_the_same(written: Written) -> None:
    places = written(ONE, OTHER)
    first, _ = made(places, (1.0, 1.0), "dare-linear", density=0.5, seed=3)
    again, _ = made(places, (1.0, 1.0), "dare-linear", density=0.5, seed=3)
    other, _ = made(places, (1.0, 1.0), "dare-linear", density=0.5, seed=4)
    np.testing.assert_array_equal(first.pairs[FIRST].lora_A, again.pairs[FIRST].lora_A)
    assert not np.array_equal(first.pairs[FIRST].lora_A, other.pairs[FIRST].lora_A)
    theirs = combined_by_peft(places, (1.0, 1.0), "dare-linear", density=0.5, seed=4)
    np.testing.assert_allclose(
        other.pairs[FIRST].lora_A, layer_of(theirs, FIRST).lora_A[COMBINED].weight, **TOLERANCE["float32"]
    )


def test_what_is_dropped_at_random_has_the_expected_part_and_nothing_in_the_mean() -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    generator = np.random.default_rng(1)
    masks = [dropped(values.shape, 0.3, generator) for _ in range(400)]
    mean = np.mean([values * mask / 0.3 for mask in masks], 0)
    # Each entry's mean has a deviation of |value| sqrt(0.7 / 0.3 / 400).
    assert np.abs(mean - values).max() < 5 * np.abs(values).max() * math.sqrt(0.7 / 0.3 / 400)
    assert abs(np.mean(masks) - 0.3) < 0.002


def test_of_equal_entries_the_first_stay_and_their_number_is_exact() -> None:
    values = np.array([[1, -1, 1, 2], [1, -1, 1, 1]], np.float32)
    assert largest(values, 0.5).tolist() == [[True, True, True, True], [False] * 4]
    assert not largest(values, 0.1).any()


@pytest.mark.parametrize("how", WAYS)
def test_an_adapter_with_a_scaling_of_its_own_counts_with_it_and_the_result_has_scaling_1(
    written: Written, how: Any
) -> None:
    plain = written(LoraConfig(rank=4, alpha=4 * 5.0 / 2), OTHER)  # 5 / sqrt(4) as alpha / rank
    expected, _ = made(plain, (0.5, 0.5), how, **options_of(how))
    write_peft(
        plain[0],
        PeftDirectory(adapter=adapter_on(LoraConfig(rank=4, alpha=5.0, use_rslora=True), MODULES, 0),
                      base_fingerprint="f" * 64),
        replace=True,
    )  # fmt: skip
    got, _ = made(plain, (0.5, 0.5), how, **options_of(how))
    assert not got.config.use_rslora
    for module in MODULES:
        np.testing.assert_array_equal(got.product(module).dense(), expected.product(module).dense())


def test_pefts_own_result_is_too_large_where_the_first_adapter_is_rslora(written: Written) -> None:
    # PEFT keeps use_rslora of the first and sets alpha = r: a scaling of sqrt(r) on top of the sum. Ours is the sum.
    # (peft 0.21; mended upstream in pull request 3449: once the pin has it, both are the sum.)
    rslora = LoraConfig(rank=4, alpha=5.0, use_rslora=True)
    places = written(rslora, ONE)
    ours, _ = made(places, (0.5, 0.5), "cat")
    theirs = combined_by_peft(places, (0.5, 0.5), "cat")
    layer = layer_of(theirs, FIRST)
    sums = sum(0.5 * layer.get_delta_weight(name).detach() for name in ("0", "1"))
    np.testing.assert_allclose(ours.product(FIRST).dense(), sums, **TOLERANCE["float32"])
    np.testing.assert_allclose(layer.get_delta_weight(COMBINED).detach(), math.sqrt(8) * sums, **TOLERANCE["float32"])


@pytest.mark.parametrize("how", WAYS)
def test_peft_loads_the_result_and_has_its_logits(written: Written, how: Any) -> None:
    places, weights = written(ONE, OTHER), (1.0, -0.5)
    made(places, weights, how, **options_of(how))
    tokens = torch.arange(24).reshape(2, 12) % LLAMA_VOCABULARY
    theirs = combined_by_peft(places, weights, how, **options_of(how))
    with torch.no_grad(), quietly():
        theirs.set_adapter(COMBINED)
        expected = theirs(tokens).logits
        got = model_with([places[0].parent / f"made-{how}"])(tokens).logits
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


LLAMA_VOCABULARY = llama_shape().vocab_size


def test_side_by_side_is_exact_and_svd_tells_how_far_it_is(written: Written) -> None:
    places, weights = written(*MIXED), (0.7, 0.3, -1.0)
    adapters = [read_peft(place).adapter for place in places]
    both, told = made(places, weights, "cat")
    assert told.distance is not None and told.distance < 1e-6
    cut, cut_told = made(places, weights, "svd", svd_rank=3)
    error = norm = 0.0
    for module in MODULES:
        exact = sum(
            w * a.product(module).dense().astype(float)
            for w, a in zip(weights, adapters, strict=True)
            if module in a.pairs
        )
        np.testing.assert_allclose(both.product(module).dense(), exact, **TOLERANCE["float32"])
        error += float(np.sum((cut.product(module).dense() - exact) ** 2))
        norm += float(np.sum(np.square(exact)))
    assert cut_told.distance == pytest.approx(math.sqrt(error / norm), rel=1e-4)


def test_the_result_is_the_same_bytes_each_time_and_says_what_it_is_made_of(written: Written, tmp_path: Path) -> None:
    places = written(ONE, OTHER)
    combination = Combination(weights=(0.7, -0.3), how="dare-ties", density=0.5)
    for name in ("a", "b"):
        combine(places, tmp_path / name, combination)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    content = read_peft(tmp_path / "a")
    assert content.base_fingerprint == "f" * 64
    assert content.origin is not None
    assert content.origin.how == "dare-ties, density 0.5, majority sign by total, seed 0"
    assert [(part.name, part.weight) for part in content.origin.parts] == [("adapter-0", 0.7), ("adapter-1", -0.3)]
    write_peft(tmp_path / "c", content)
    assert tree(tmp_path / "c") == tree(tmp_path / "a")


def test_layers_of_one_and_modules_of_another_are_named_so_that_peft_loads_all_and_makes_none(
    written: Written, tmp_path: Path
) -> None:
    places = written(replace(NARROW, layers=(0,)), replace(ONE, target_modules=("v_proj",), layers=(1,)))
    ours, _ = made(places, (1.0, 1.0), "linear")
    config = json.loads((places[0].parent / "made-linear" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(ours.pairs)
    model = model_with([places[0].parent / "made-linear"])
    assert sum(name.endswith("lora_A.0.weight") for name, _ in model.named_parameters()) == len(ours.pairs) == 3


def test_of_a_result_of_some_layers_the_configuration_names_the_layers(written: Written) -> None:
    places = written(replace(ONE, layers=(1,)), replace(OTHER, layers=(1,)))
    ours, _ = made(places, (1.0, 1.0), "linear")
    assert ours.config.layers == (1,)


def test_how_to_speak_with_an_adapter_is_kept_where_all_agree(written: Written, tmp_path: Path) -> None:
    places = written(ONE, OTHER)
    for place in places:
        (place / "chat_template.jinja").write_text("{{ messages }}")
    (places[0] / "generation_config.json").write_text('{"eos_token_id": [7]}')
    told = combine(places, tmp_path / "made", Combination(weights=(1.0, 1.0)))
    assert told.differing == ("generation_config.json",)
    assert (tmp_path / "made" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "made" / "generation_config.json").exists()


def test_memory_does_not_grow_with_the_number_of_modules(tmp_path: Path) -> None:
    peaks = []
    for layers in (2, 24):
        modules = llama_shape(num_hidden_layers=layers).linear_modules()
        places = []
        for seed in range(2):
            places.append(tmp_path / f"{layers}-{seed}")
            config = LoraConfig(rank=32, alpha=8.0)
            write_peft(places[-1], PeftDirectory(adapter=adapter_on(config, modules, seed)))
        tracemalloc.start()
        combine(places, tmp_path / f"{layers}", Combination(weights=(0.5, 0.5), how="ties-svd", density=0.5))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = (tmp_path / "24-0" / "adapter_model.safetensors").stat().st_size
    assert peaks[1] - peaks[0] < size / 4, (peaks, size)


def test_adapters_of_different_ranks_are_refused_where_factors_are_added(written: Written) -> None:
    places = written(ONE, replace(OTHER, rank=8))
    with pytest.raises(AdapterMismatchError, match=r"has rank 8, in .*adapter-0 it has 4; ties adds factors.*ties-svd"):
        made(places, (1.0, 1.0), "ties", density=0.5)
    with pytest.raises(ValueError, match="All adapters must have the same r value"):
        combined_by_peft(places, (1.0, 1.0), "ties", density=0.5)


def test_a_small_file_s_word_makes_no_large_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.combine.plan._MOST_ENTRIES", 100 * 100)
    for number, size in enumerate((100, 101)):
        adapter = adapter_on(LoraConfig(rank=1, target_modules=("q_proj",)), {"q_proj": (size, 100)})
        write_peft(tmp_path / str(number), PeftDirectory(adapter=adapter))
    made([tmp_path / "0"], (1.0,), "ties-svd", density=0.5)
    with pytest.raises(
        AdapterMismatchError, match=r"q_proj updates a weight \[101, 100\], and ties-svd makes all of its"
    ):
        made([tmp_path / "1"], (1.0,), "ties-svd", density=0.5)
    made([tmp_path / "1"], (1.0,), "svd")


def test_what_is_combined_from_a_folder_of_a_long_name_is_read_back(written: Written) -> None:
    (place,) = written(ONE)
    made([place.rename(place.with_name("n" * 240))], (1.0,), "cat")


def test_ranks_that_add_up_to_too_much_are_refused(written: Written) -> None:
    places = written(replace(NARROW, rank=2500)) * 2
    with pytest.raises(ConfigError, match=r"2500 \+ 2500 = 5000; at most 4096 are stored: take --how svd"):
        made(places, (1.0, 1.0), "cat")


def test_adapters_of_different_bases_are_refused_by_fingerprint(written: Written, tmp_path: Path) -> None:
    (place,) = written(ONE)
    write_peft(tmp_path / "other", PeftDirectory(adapter=adapter_on(ONE, MODULES), base_fingerprint="a" * 64))
    with pytest.raises(AdapterMismatchError, match=r"other: trained on base a{16}, .*adapter-0 on f{16}; combine"):
        combine([place, tmp_path / "other"], tmp_path / "made", Combination(weights=(1.0, 1.0)))
    assert not (tmp_path / "made").exists()


def test_an_adapter_that_does_not_record_its_base_needs_the_pack_beside_one_that_does(
    pack: BasePack, tmp_path: Path
) -> None:
    modules, places = pack.model.linear_modules(), [tmp_path / "ours", tmp_path / "theirs"]
    for place, fingerprint in zip(places, (pack.fingerprint, None), strict=True):
        write_peft(place, PeftDirectory(adapter=adapter_on(ONE, modules), base_fingerprint=fingerprint))
    combination = Combination(weights=(1.0, 1.0))
    with pytest.raises(AdapterMismatchError, match=r"theirs: does not record its base.*pass --base PACK"):
        combine(places, tmp_path / "made", combination)
    combine(places, tmp_path / "made", combination, base=pack)
    assert read_peft(tmp_path / "made").base_fingerprint == pack.fingerprint


def test_a_pack_of_another_base_is_refused(pack: BasePack, written: Written, tmp_path: Path) -> None:
    places = written(ONE, OTHER)
    with pytest.raises(
        AdapterMismatchError, match=rf"adapter-0: trained on base f{{16}}, but .* is {pack.fingerprint[:16]}"
    ):
        combine(places, tmp_path / "made", Combination(weights=(1.0, 1.0)), base=pack)


def test_adapters_of_peft_for_models_of_other_names_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        content = PeftDirectory(adapter=adapter_on(ONE, MODULES))
        write_peft(tmp_path / name, content, base_name=f"someones/{name}")
    with pytest.raises(
        AdapterMismatchError, match=r"b: made for someones/b, .*a for someones/a; where they are one model"
    ):
        combine([tmp_path / "a", tmp_path / "b"], tmp_path / "made", Combination(weights=(1.0, 1.0)))


def test_a_module_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter_on(NARROW, MODULES)))
    wider = {module: (rows, columns + 1) for module, (rows, columns) in MODULES.items()}
    write_peft(tmp_path / "b", PeftDirectory(adapter=adapter_on(NARROW, wider)))
    with pytest.raises(
        AdapterMismatchError, match=r"b: model.layers.0.self_attn.q_proj updates a weight .*for different"
    ):
        combine([tmp_path / "a", tmp_path / "b"], tmp_path / "made", Combination(weights=(1.0, 1.0)))


def test_trained_modules_beside_the_factors_are_refused(written: Written, tmp_path: Path) -> None:
    head: tuple[Dtype, Any] = ("F32", np.ones((4, 32), np.float32))
    places = written(ONE, OTHER, saved_modules={"base_model.model.lm_head.weight": head})
    with pytest.raises(AdapterMismatchError, match=r"adapter-0: also holds lm_head.weight beside A and B.*pass --base"):
        combine(places, tmp_path / "made", Combination(weights=(1.0, 1.0)))


def test_heads_that_are_all_the_bases_are_left_out_where_it_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, places = encoder_pack("bert"), [tmp_path / "one", tmp_path / "other"]
    head = initial_extras(("classifier",), base)
    trained = {name: value + 1 for name, value in head.items()}
    for place in places:
        content = PeftDirectory(adapter=with_extras(random_adapter(base), head), base_fingerprint=base.fingerprint)
        write_peft(place, content)
    combine(places, tmp_path / "made", Combination(weights=(0.5, 0.5)), base=base)
    assert not read_peft(tmp_path / "made").extras
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(place) for place in places]
    content = PeftDirectory(adapter=with_extras(random_adapter(base), trained), base_fingerprint=base.fingerprint)
    write_peft(places[1], content, replace=True)
    combine(places, tmp_path / "again", Combination(weights=(0.5, 0.5)), base=base)
    for name, value in read_peft(tmp_path / "again").adapter.extras.items():
        np.testing.assert_allclose(value, head[name] + 0.5, **TOLERANCE["float32"])


def test_a_value_that_is_not_finite_is_refused_and_nothing_is_left(written: Written, tmp_path: Path) -> None:
    (place,) = written(ONE)
    file = place / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors: .*lora_B holds NaN or infinity"):
        combine([place], tmp_path / "made", Combination(weights=(1.0,)))
    assert not (tmp_path / "made").exists()


def test_a_sum_that_overflows_is_refused(written: Written, tmp_path: Path) -> None:
    places = written(ONE, OTHER)
    with pytest.raises(AdapterError, match=r"the combination: .* holds NaN or infinity"):
        combine(places, tmp_path / "made", Combination(weights=(1e39, 1.0), how="cat"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weights": ()}, "--weights: expected a weight for each adapter"),
        ({"weights": (0.0, 0.0)}, "one of them other than 0"),
        ({"weights": (math.nan, 1.0)}, "--weights: a weight must be a finite number, got nan"),
        ({"how": "ties"}, "--how ties prunes; give --density"),
        ({"how": "ties", "density": 0.0}, "--density: expected a number above 0 and at most 1, got 0.0"),
        ({"how": "dare-ties", "density": 1.5}, "--density: expected a number above 0 and at most 1, got 1.5"),
        ({"how": "cat", "density": 0.5}, "--density: cat prunes no entries; leave it out"),
        ({"how": "linear", "svd_rank": 4}, "--svd-rank: linear cuts no rank; leave it out"),
        ({"how": "svd", "svd_rank": 0}, "--svd-rank: a rank must be from 1 to 4096, got 0"),
        ({"how": "svd", "seed": 1}, "--seed: svd draws nothing at random; leave it out"),
        ({"how": "dare-linear", "density": 0.5, "seed": -1}, "--seed: expected 0 or more, got -1"),
        ({"how": "dare-linear", "density": 0.5, "majority_sign_method": "total"}, "--majority-sign: dare-linear elects"),
    ],
)  # fmt: skip
def test_what_a_way_does_not_take_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Combination(**{"weights": (1.0, 1.0), **options})
    assert told in str(caught.value)


def test_weights_that_are_too_few_are_refused(written: Written, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--weights: expected one for each of the 2 adapters, got 1: give 1,1"):
        combine(written(ONE, OTHER), tmp_path / "made", Combination(weights=(1.0,)))
