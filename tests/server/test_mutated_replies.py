"""Whatever is wrong with one reply costs that device the round, counted by its reason, with every method."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.ranks import with_ranks
from fedlora.wire.update import Update, encode_update
from flwr.app import Message

from tests.server.fake_grid import Device, Honest, Player, training_reply
from tests.server.method_cases import METHODS

QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"

Mutation = Callable[[Update], Update | bytes]


def fields(**changed: Any) -> Mutation:
    return lambda update: dataclasses.replace(update, **changed)


def pairs(change: Callable[[dict[str, LoraPair]], object]) -> Mutation:
    """`change` works on a copy of the adapter's pairs; ranks follow."""

    def mutate(update: Update) -> Update:
        changed = dict(update.adapter.pairs)
        change(changed)
        config = with_ranks(update.adapter.config, {name: pair.rank for name, pair in changed.items()})
        return dataclasses.replace(update, adapter=Adapter(config if changed else update.adapter.config, changed))

    return mutate


def config(**changed: Any) -> Mutation:
    def mutate(update: Update) -> Update:
        other = dataclasses.replace(update.adapter.config, **changed)
        return dataclasses.replace(update, adapter=Adapter(other, update.adapter.pairs))

    return mutate


def entry(module: str, value: float) -> Mutation:
    """One number of a factor that travels."""

    def mutate(update: Update) -> Update:
        pair = update.adapter.pairs[module]
        arrays = {"A": pair.lora_A.copy(), "B": pair.lora_B.copy()}
        arrays[update.factors[-1]][-1, -1] = value
        changed = {**update.adapter.pairs, module: LoraPair(arrays["A"], arrays["B"])}
        return dataclasses.replace(update, adapter=Adapter(update.adapter.config, changed))

    return mutate


def resized(pair: LoraPair, rank: int) -> LoraPair:
    return LoraPair(np.resize(pair.lora_A, (rank, pair.shape[1])), np.resize(pair.lora_B, (pair.shape[0], rank)))


def header(change: Callable[[dict[str, Any]], object]) -> Mutation:
    """`change` works on the header of the bytes."""

    def mutate(update: Update) -> bytes:
        data = encode_update(update)
        length = int.from_bytes(data[5:9], "little")
        values = json.loads(data[9 : 9 + length])
        change(values)
        text = json.dumps(values).encode()
        return data[:5] + len(text).to_bytes(4, "little") + text + data[9 + length :]

    return mutate


def cut(change: Callable[[bytes], bytes]) -> Mutation:
    return lambda update: change(encode_update(update))


MUTATIONS: dict[str, tuple[str | tuple[str, ...], Mutation]] = {
    "a module is missing": ("wrong-modules", pairs(lambda p: p.pop(DOWN))),
    "all modules are missing": ("wrong-modules", pairs(lambda p: p.clear())),
    "a module is extra": (("wrong-modules", "bad-shape"), pairs(lambda p: p.update({"model.layers.9.q_proj": p[QUERY]}))),
    "a module has another name": (("wrong-modules", "bad-shape"), pairs(lambda p: p.update({"q_proj": p.pop(QUERY)}))),
    "one module has rank 1": ("wrong-rank", pairs(lambda p: p.update({DOWN: resized(p[DOWN], 1)}))),
    "all modules have rank 1": ("wrong-rank", pairs(lambda p: p.update({m: resized(v, 1) for m, v in p.items()}))),
    "all modules have rank 3": (
        ("wrong-rank", "bad-shape"), pairs(lambda p: p.update({m: resized(v, 3) for m, v in p.items()})),
    ),
    "one module has rank 4000": (("wrong-rank", "bad-shape"), pairs(lambda p: p.update({DOWN: resized(p[DOWN], 4000)}))),
    "A has a column too few": (
        ("wrong-shape", "bad-shape"), pairs(lambda p: p.update({DOWN: LoraPair(p[DOWN].lora_A[:, :-1], p[DOWN].lora_B)})),
    ),
    "B has a row too few": (
        ("wrong-shape", "bad-shape"), pairs(lambda p: p.update({DOWN: LoraPair(p[DOWN].lora_A, p[DOWN].lora_B[:-1])})),
    ),
    "A is [2, 1], which numpy would broadcast": (
        ("wrong-shape", "bad-shape"), pairs(lambda p: p.update({DOWN: LoraPair(p[DOWN].lora_A[:, :1], p[DOWN].lora_B)})),
    ),
    "B is [1, 2], which numpy would broadcast": (
        ("wrong-shape", "bad-shape"), pairs(lambda p: p.update({DOWN: LoraPair(p[DOWN].lora_A, p[DOWN].lora_B[:1])})),
    ),
    "two modules are swapped": (
        ("wrong-shape", "bad-shape"), pairs(lambda p: p.update({QUERY: p[DOWN], DOWN: p[QUERY]})),
    ),
    "a number is NaN": ("not-finite", entry(QUERY, math.nan)),
    "a number of the last module is NaN": ("not-finite", entry(DOWN, math.nan)),
    "a number is infinity": ("not-finite", entry(DOWN, math.inf)),
    "a number is minus infinity": ("not-finite", entry(QUERY, -math.inf)),
    "a number is 1e20": ("too-large", entry(QUERY, 1e20)),
    "a number is -3e38": ("too-large", entry(DOWN, -3e38)),
    "it has no examples": ("bad-weight", fields(num_examples=0)),
    "its examples are negative": ("bad-weight", fields(num_examples=-5)),
    "it has 10^12 examples": ("bad-weight", fields(num_examples=10**12)),
    "it is for another base": ("wrong-base", fields(base_fingerprint="other")),
    "it names no base": ("wrong-base", fields(base_fingerprint="")),
    "it is of another run": ("wrong-run", fields(run="other")),
    "it is of the round before": ("wrong-round", lambda u: dataclasses.replace(u, server_round=u.server_round - 1)),
    "it is of the round to come": ("wrong-round", lambda u: dataclasses.replace(u, server_round=u.server_round + 1)),
    "its alpha is another": ("wrong-config", config(alpha=8.0)),
    "it scales by rsLoRA": ("wrong-config", config(use_rslora=True)),
    "one module has an alpha of its own": ("wrong-config", config(alpha_pattern={QUERY: 400.0})),
    "it brings an adapter beside the trained one": (
        "wrong-factors", lambda u: dataclasses.replace(u, frozen=u.adapter),
    ),
    "it brings other factors": (
        ("wrong-factors", "truncated"), lambda u: dataclasses.replace(u, factors="B" if u.factors != "B" else "AB"),
    ),
    "it is truncated": ("truncated", cut(lambda data: data[:-1])),
    "it has a byte too many": ("truncated", cut(lambda data: data + b"\0")),
    "its header is cut": ("bad-header", cut(lambda data: data[:40])),
    "it is no update": ("bad-header", cut(lambda data: bytes(reversed(data)))),
    "its codec is unknown": ("bad-header", header(lambda values: values.update(codec="f8"))),
    "its examples are a word": ("bad-header", header(lambda values: values.update(num_examples="many"))),
    "its rank is no number": ("bad-header", header(lambda values: values["lora"].update(rank="2"))),
    "its rank is none, behind a pattern for a module named rank": (
        "bad-header", header(lambda values: values["lora"].update(rank=None, rank_pattern={"rank": 1})),
    ),
    "its rank is negative, behind such a pattern": (
        "bad-header", header(lambda values: values["lora"].update(rank=-1, rank_pattern={"rank": 1})),
    ),
    "its alpha is a word, behind such a pattern": (
        "bad-header", header(lambda values: values["lora"].update(alpha="x", alpha_pattern={"alpha": 1.0})),
    ),
    "its factors are unknown": ("bad-header", header(lambda values: values.update(factors="C"))),
    "its task is unknown": ("bad-header", header(lambda values: values.update(task={"trains": "C"}))),
    "a module's size is negative": ("bad-header", header(lambda values: values["modules"][0].__setitem__(1, -4))),
}  # fmt: skip


def replying(mutate: Mutation, name: str) -> Callable[[Message, Update], Sequence[Message]]:
    def change(message: Message, update: Update) -> Sequence[Message]:
        changed = mutate(update)
        data = changed if isinstance(changed, bytes) else encode_update(changed)
        return [training_reply(message, data, name)]

    return change


def reasons_in(log: Sequence[logging.LogRecord]) -> list[tuple[str, str]]:
    """(device, the reason for which its reply was excluded), in the order of the replies"""
    lines = (record.getMessage() for record in log if "excluded" in record.msg)
    found = (re.fullmatch(r"round 1: excluded \(([\w-]+)\): device (.+?): .+", line, re.DOTALL) for line in lines)
    return [(match[2], match[1]) for match in found if match]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_round_commits_as_if_mutated_replies_had_not_been_there(
    play: Player, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(MUTATIONS) >= 40
    first: dict[int, Device] = {node: Honest(node) for node in (1, 2)}
    last: dict[int, Device] = {4: Honest(4)}
    names = {f"bad-{number}": what for number, what in enumerate(MUTATIONS)}
    bad: dict[int, Device] = {
        100 + number: Honest(100 + number, replying(mutate, f"bad-{number}"))
        for number, (_, mutate) in enumerate(MUTATIONS.values())
    }
    settings: dict[str, Any] = {"method": method, "evaluate": False, "rounds": 1}
    expected = play.soundly(first | last, **settings).adapter(1)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fedlora.server"):
        played = play.soundly(first | bad | last, min_devices=3, **settings)  # which reply between the honest ones
    told = reasons_in(caplog.records)
    assert sorted(device for device, _ in told) == sorted(names)
    for device, reason in told:
        reasons = MUTATIONS[names[device]][0]
        assert reason in ((reasons,) if isinstance(reasons, str) else reasons), f"{names[device]}: {reason}"
    assert played.metrics[1]["excluded"] == Counter(reason for _, reason in told)
    assert played.metrics[1]["replies"] == 3
    for module, pair in played.adapter(1).pairs.items():
        np.testing.assert_array_equal(pair.lora_A, expected.pairs[module].lora_A)
        np.testing.assert_array_equal(pair.lora_B, expected.pairs[module].lora_B)


@pytest.mark.parametrize(("rank", "reason"), [(1, "wrong-rank"), (2, None), (3, None), (4, None), (5, "wrong-rank")])
def test_a_run_of_several_ranks_takes_those_from_the_least_to_its_own(
    play: Player, rank: int, reason: str | None
) -> None:
    def of_rank(update: Update) -> Update:
        changed = {name: resized(pair, rank) for name, pair in update.adapter.pairs.items()}
        ranks = {name: pair.rank for name, pair in changed.items()}
        return dataclasses.replace(update, adapter=Adapter(with_ranks(update.adapter.config, ranks), changed))

    devices: dict[int, Device] = {1: Honest(1), 2: Honest(2, replying(of_rank, "bad"))}
    played = play.soundly(devices, rounds=1, rank=4, min_rank=2)
    assert played.metrics[1]["excluded"] == ({reason: 1} if reason else {})
