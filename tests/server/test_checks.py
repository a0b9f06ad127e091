"""What is not exactly the reply that a round expects is refused, with a reason to count by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from fedlora.errors import UpdateError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.wire.update import Update, decode_update, encode_update
from fedlora_server.checks import MAX_EXAMPLES, Expectation

CONFIG = LoraConfig(rank=2, alpha=4.0, target_modules=("q_proj", "up_proj"))
SHAPES = {"layers.0.q_proj": (4, 5), "layers.0.up_proj": (6, 5)}
FIRST, LAST = SHAPES


def adapter(config: LoraConfig = CONFIG, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> Adapter:
    generator = np.random.default_rng(1)
    pairs = {}
    for module, (rows, columns) in shapes.items():
        rank = config.rank_of(module)
        pairs[module] = LoraPair(
            generator.normal(size=(rank, columns)).astype(np.float32),
            generator.normal(size=(rows, rank)).astype(np.float32),
        )
    return Adapter(config, pairs)


VALID = Update(adapter=adapter(), run="run", server_round=3, base_fingerprint="base", num_examples=8)
EXPECTATION = Expectation(run="run", server_round=3, base_fingerprint="base", adapter=adapter())

Mutation = Callable[[Update], Update]


def with_fields(**fields: object) -> Mutation:
    return lambda update: dataclasses.replace(update, **fields)  # type: ignore[arg-type]


def with_config(**fields: object) -> Mutation:
    """Puts the factors of an update under another configuration."""

    def mutate(update: Update) -> Update:
        config = dataclasses.replace(update.adapter.config, **fields)  # type: ignore[arg-type]
        return dataclasses.replace(update, adapter=Adapter(config, update.adapter.pairs))

    return mutate


def with_pairs(change: Callable[[dict[str, LoraPair]], object], config: LoraConfig = CONFIG) -> Mutation:
    """`change` works on a copy of the adapter's pairs."""

    def mutate(update: Update) -> Update:
        pairs = dict(update.adapter.pairs)
        change(pairs)
        return dataclasses.replace(update, adapter=Adapter(config, pairs))

    return mutate


def with_entry(module: str, factor: str, value: float) -> Mutation:
    """One entry of one factor is `value`."""

    def change(pairs: dict[str, LoraPair]) -> None:
        arrays = {"lora_A": pairs[module].lora_A.copy(), "lora_B": pairs[module].lora_B.copy()}
        arrays[factor][-1, -1] = value
        pairs[module] = LoraPair(**arrays)

    return with_pairs(change)


def of_rank(rank: int) -> Mutation:
    config = dataclasses.replace(CONFIG, rank=rank)
    return with_fields(adapter=adapter(config))


def thin_in_one_module(pairs: dict[str, LoraPair]) -> None:
    pairs[LAST] = LoraPair(pairs[LAST].lora_A[:1], pairs[LAST].lora_B[:, :1])


def narrower(pairs: dict[str, LoraPair]) -> None:
    pairs[LAST] = LoraPair(pairs[LAST].lora_A[:, :-1], pairs[LAST].lora_B)


def shorter(pairs: dict[str, LoraPair]) -> None:
    pairs[LAST] = LoraPair(pairs[LAST].lora_A, pairs[LAST].lora_B[:-1])


def one_column(pairs: dict[str, LoraPair]) -> None:
    pairs[FIRST] = LoraPair(pairs[FIRST].lora_A[:, :1], pairs[FIRST].lora_B)


def one_row(pairs: dict[str, LoraPair]) -> None:
    pairs[FIRST] = LoraPair(pairs[FIRST].lora_A, pairs[FIRST].lora_B[:1])


MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "a module is missing": ("wrong-modules", with_pairs(lambda pairs: pairs.pop(LAST))),
    "all modules are missing": ("wrong-modules", with_pairs(lambda pairs: pairs.clear())),
    "a module is extra": ("wrong-modules", with_pairs(lambda p: p.update({"layers.1.q_proj": p[FIRST]}))),
    "a module has another name": ("wrong-modules", with_pairs(lambda p: p.update({"q_proj": p.pop(FIRST)}))),
    "one module has rank 1 for 2": (
        "wrong-rank",
        with_pairs(thin_in_one_module, dataclasses.replace(CONFIG, rank_pattern={LAST: 1})),
    ),
    "all modules have rank 1": ("wrong-rank", of_rank(1)),
    "all modules have rank 3": ("wrong-rank", of_rank(3)),
    "A has a column too few": ("wrong-shape", with_pairs(narrower)),
    "B has a row too few": ("wrong-shape", with_pairs(shorter)),
    "A is [2, 1], which numpy would broadcast": ("wrong-shape", with_pairs(one_column)),
    "B is [1, 2], which numpy would broadcast": ("wrong-shape", with_pairs(one_row)),
    "the modules are swapped": (
        "wrong-shape",
        with_pairs(lambda pairs: pairs.update({FIRST: pairs[LAST], LAST: pairs[FIRST]})),
    ),
    "A holds a NaN": ("not-finite", with_entry(FIRST, "lora_A", math.nan)),
    "B of the last module holds a NaN": ("not-finite", with_entry(LAST, "lora_B", math.nan)),
    "A holds infinity": ("not-finite", with_entry(LAST, "lora_A", math.inf)),
    "B holds minus infinity": ("not-finite", with_entry(FIRST, "lora_B", -math.inf)),
    "A holds 1e20": ("too-large", with_entry(FIRST, "lora_A", 1e20)),
    "B holds -3e38": ("too-large", with_entry(LAST, "lora_B", -3e38)),
    "it has no examples": ("bad-weight", with_fields(num_examples=0)),
    "its examples are negative": ("bad-weight", with_fields(num_examples=-5)),
    "it has 10^12 examples": ("bad-weight", with_fields(num_examples=10**12)),
    "it has one example too many": ("bad-weight", with_fields(num_examples=MAX_EXAMPLES + 1)),
    "it is for another base": ("wrong-base", with_fields(base_fingerprint="other")),
    "it names no base": ("wrong-base", with_fields(base_fingerprint="")),
    "it is of another run": ("wrong-run", with_fields(run="other")),
    "it is of the round before": ("wrong-round", with_fields(server_round=2)),
    "it is of the round to come": ("wrong-round", with_fields(server_round=4)),
    "its alpha is another": ("wrong-config", with_config(alpha=8.0)),
    "it scales by rsLoRA": ("wrong-config", with_config(use_rslora=True)),
    "one module has an alpha of its own": ("wrong-config", with_config(alpha_pattern={FIRST: 400.0})),
    "it names other target modules": ("wrong-config", with_config(target_modules=("q_proj", "v_proj"))),
}


@pytest.mark.parametrize(("reason", "mutate"), MUTATIONS.values(), ids=list(MUTATIONS))
def test_an_update_is_refused_when(reason: str, mutate: Mutation) -> None:
    with pytest.raises(UpdateError) as caught:
        EXPECTATION.check(mutate(VALID))
    assert caught.value.reason == reason


@pytest.mark.parametrize(("reason", "mutate"), MUTATIONS.values(), ids=list(MUTATIONS))
def test_an_update_that_has_travelled_is_refused_when(reason: str, mutate: Mutation) -> None:
    update = decode_update(encode_update(mutate(VALID)))
    with pytest.raises(UpdateError) as caught:
        EXPECTATION.check(update)
    assert caught.value.reason == reason


@pytest.mark.parametrize("codec", ["f32", "f16"])
@pytest.mark.parametrize("num_examples", [1, 8, MAX_EXAMPLES])
def test_a_sound_update_is_accepted(num_examples: int, codec: str) -> None:
    update = dataclasses.replace(VALID, num_examples=num_examples)
    EXPECTATION.check(update)
    EXPECTATION.check(decode_update(encode_update(update, codec)))


def test_an_update_whose_modules_come_in_another_order_is_accepted() -> None:
    pairs = dict(reversed(list(VALID.adapter.pairs.items())))
    EXPECTATION.check(dataclasses.replace(VALID, adapter=Adapter(CONFIG, pairs)))


def test_the_message_names_a_module_that_is_missing_and_the_numbers() -> None:
    with pytest.raises(UpdateError, match=f"of its modules 1 are missing and 0 are unknown, {LAST} among them"):
        EXPECTATION.check(with_pairs(lambda pairs: pairs.pop(LAST))(VALID))


def test_the_message_gives_the_rank_that_came_and_the_rank_that_was_expected() -> None:
    with pytest.raises(UpdateError, match=f"rank of {FIRST} is 3; expected 2"):
        EXPECTATION.check(of_rank(3)(VALID))
