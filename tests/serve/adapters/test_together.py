"""Several adapters as one: known by its parts and weights, refused where they do not add up, counted where it is a copy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import AdapterMismatchError, AdapterStoreFullError, AdapterTooLargeError, ConfigError
from fedlora_serve.adapters.loading import LoadedAdapter, WeightedAdapter
from fedlora_serve.adapters.together import copied, releases_of, together

from tests.serve.adapters.fake_source import UNIT, FakeSource, content_of, filled, inputs_of, status_of

LAW, VERSE = replace(content_of(1), name="law"), replace(content_of(2), name="verse")


def summed(*shares: tuple[LoadedAdapter, float]) -> LoadedAdapter:
    return together([WeightedAdapter(adapter=adapter, weight=weight) for adapter, weight in shares])


def test_a_sum_is_known_by_its_parts_and_weights_in_whatever_order() -> None:
    one = summed((LAW, 0.7), (VERSE, -0.3))
    assert one.digest == summed((VERSE, -0.3), (LAW, 0.7)).digest
    others = [
        ((LAW, 0.3), (VERSE, 0.7)),
        ((LAW, 0.7), (VERSE, 0.3)),
        ((LAW, 0.7),),
        ((LAW, 1.0),),
        ((LAW, 0.7), (content_of(3), -0.3)),
    ]
    assert len({one.digest, LAW.digest, *(summed(*shares).digest for shares in others)}) == 2 + len(others)
    assert (one.name, one.rank, one.size_bytes) == ("0.7 law + -0.3 verse", 4, 0)
    assert {part.adapter.name: part.weight for part in one.parts} == {"law": 0.7, "verse": -0.3}
    assert [part.adapter for part in LAW.parts] == [LAW]


def test_a_copy_has_the_factors_side_by_side_and_the_digest_of_the_sum() -> None:
    whole = summed((LAW, 0.5), (VERSE, -2.0))
    copy = copied(whole)
    got, law, verse = (inputs_of(each.values) for each in (copy, LAW, VERSE))
    product = got["m.lora_A.weight"] @ got["m.lora_B.weight"]
    expected = (
        0.5 * law["m.lora_A.weight"] @ law["m.lora_B.weight"] - 2 * verse["m.lora_A.weight"] @ verse["m.lora_B.weight"]
    )
    np.testing.assert_allclose(product, expected, rtol=1e-6)
    assert (copy.digest, copy.size_bytes, copy.parts) == (whole.digest, 2 * UNIT, whole.parts)


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([], "expected one or more, and one of them with a weight other than 0"),
        ([(LAW, 0.0), (VERSE, 0.0)], "expected one or more, and one of them with a weight other than 0"),
        ([(LAW, math.nan)], "law has the weight nan; expected one from -100 to 100"),
        ([(LAW, 1.0), (VERSE, -100.5)], "verse has the weight -100.5; expected one from -100 to 100"),
        ([(LAW, 1.0), (LAW, 2.0)], "law is named twice; name it once, with the sum of the weights"),
        (
            [(LAW, 1.0), (replace(VERSE, values={}, prefix=np.zeros((2, 1, 20, 4), np.float32)), 1.0)],
            "verse is 20 virtual tokens before the text, which have no sum with another adapter; ask for it alone",
        ),
        (
            [(LAW, 1.0), (replace(VERSE, rank=4095), 1.0)],
            "together they have rank 4097 (2 of law + 4095 of verse); expected at most 4096: name fewer, or adapters of",
        ),
    ],
)
def test_what_does_not_add_up_is_refused_with_its_numbers(shares: list[tuple[LoadedAdapter, float]], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        summed(*shares)
    assert str(caught.value).startswith(f"adapters: {told}")


def test_heads_for_other_labels_are_refused() -> None:
    def with_head(adapter: LoadedAdapter, labels: int) -> LoadedAdapter:
        return replace(adapter, values={**inputs_of(adapter.values), "classifier.bias": np.ones(labels, np.float32)})

    summed((with_head(LAW, 3), 0.5), (with_head(VERSE, 3), 0.5))
    with pytest.raises(
        AdapterMismatchError, match=r"verse has a head with classifier.bias \[5\], and law has .*\[3\]; heads"
    ):
        summed((with_head(LAW, 3), 0.5), (with_head(VERSE, 5), 0.5))
    with pytest.raises(AdapterMismatchError, match=r"verse has no head, and law has a head with classifier.bias \[3\]"):
        summed((with_head(LAW, 3), 0.5), (VERSE, 0.5))


def test_how_to_chat_is_what_all_say_and_else_nothing_and_releases_are_told_where_all_have_one() -> None:
    spoken = [replace(one, chat=ChatSettings(source="s", place=one.name)) for one in (LAW, VERSE)]
    assert summed((spoken[0], 1.0), (spoken[1], 1.0)).chat.source == "s"
    assert summed((spoken[0], 1.0), (VERSE, 1.0)).chat == ChatSettings()
    assert releases_of(summed((LAW, 1.0), (VERSE, 1.0))) == []


def test_a_copy_counts_to_the_budget_once_while_somebody_holds_it(source: FakeSource) -> None:
    store = filled(source, "abc", budget=4)
    leases = [store.lease(name) for name in "ab"]
    versions = [lease.version for lease in leases]
    wholes = [
        summed(*((version, 1.0) for version in versions)),
        summed(*((version, 1.0) for version in versions[::-1])),
    ]
    held = [store.lease_copy(whole) for whole in wholes]  # c is evicted: it is nobody's
    assert held[0].version.values is held[1].version.values
    assert [lease.version.name for lease in held] == ["1 a + 1 b", "1 b + 1 a"]
    assert (store.stats().resident_bytes, store.stats().loaded) == (4 * UNIT, 3)
    assert not status_of(store, "c").resident
    with pytest.raises(
        AdapterStoreFullError, match=r"must stay, pinned: none; in use: \(a version without a name\), a, b"
    ):
        store.lease("c")
    held[0].release()
    assert store.stats().resident_bytes == 4 * UNIT
    held[1].release()
    assert (store.stats().resident_bytes, store.stats().resident) == (2 * UNIT, 2)
    for lease in leases:
        lease.release()
    store.lease("c").release()


def test_a_copy_that_never_fits_beside_its_parts_is_too_large(source: FakeSource) -> None:
    store = filled(source, "ab", budget=3)
    leases = [store.lease(name) for name in "ab"]
    whole = summed(*((lease.version, 1.0) for lease in leases))
    with pytest.raises(
        AdapterTooLargeError, match=r"takes 1600 bytes beside the 1600 of its parts, all .* have 2400; name fewer"
    ):
        store.lease_copy(whole)
    assert store.stats().resident_bytes == 2 * UNIT
