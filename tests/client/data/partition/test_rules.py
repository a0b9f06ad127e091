"""Every rule gives each record to one device; the sizes are those of Flower Datasets where it has the same rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fedlora.errors import DataError
from fedlora_client.data.partition import rules
from fedlora_client.data.partition.rules import Indices
from hypothesis import given
from hypothesis import strategies as st

LABELS = [str((n * n + 7 * n) % 11 % 6) for n in range(2003)]  # 6 labels of unequal sizes

# What DirichletPartitioner(num_partitions, "label", alpha, min_partition_size, seed=seed) of flwr-datasets 0.6.1 gives for
# LABELS, as texts and as numbers.
OF_FLOWER = {
    (10, 0.1, 10, 42): [244, 46, 256, 441, 285, 477, 118, 107, 12, 17],
    (10, 0.5, 10, 0): [52, 175, 173, 408, 311, 177, 238, 151, 171, 147],
    (7, 1.0, 100, 3): [124, 401, 304, 339, 424, 224, 187],
    (20, 0.3, 5, 1): [7, 83, 75, 227, 71, 71, 99, 132, 21, 100, 79, 159, 165, 15, 56, 35, 254, 185, 85, 84],
}


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("devices", "alpha", "least", "seed"), OF_FLOWER)
def test_dirichlet_sizes_are_those_of_flower_datasets(devices: int, alpha: float, least: int, seed: int) -> None:
    parts = rules.dirichlet(LABELS, devices, alpha, least, generator(seed))
    assert list(map(len, parts)) == OF_FLOWER[devices, alpha, least, seed]


def test_iid_sizes_are_those_of_flower_datasets() -> None:
    assert list(map(len, rules.iid(2003, 7, generator(0)))) == [287, 286, 286, 286, 286, 286, 286]  # IidPartitioner


RULES: dict[str, Callable[[int, int, int], list[Indices]]] = {
    "iid": lambda records, devices, seed: rules.iid(records, devices, generator(seed)),
    "quantity": lambda records, devices, seed: rules.quantity(records, devices, 0.2, 3, generator(seed)),
    "dirichlet": lambda records, devices, seed: rules.dirichlet(LABELS[:records], devices, 1.0, 1, generator(seed)),
    "shards": lambda records, devices, seed: rules.shards(LABELS[:records], devices, 2, generator(seed)),
}


@pytest.mark.parametrize("rule", RULES)
@given(records=st.integers(200, 400), devices=st.integers(1, 20), seed=st.integers(0, 1 << 31))
def test_each_record_goes_to_one_device_and_a_seed_has_its_own_dealing(
    rule: str, records: int, devices: int, seed: int
) -> None:
    parts = RULES[rule](records, devices, seed)
    assert len(parts) == devices
    assert sorted(np.concatenate(parts).tolist()) == list(range(records))
    assert [part.tolist() for part in RULES[rule](records, devices, seed)] == [part.tolist() for part in parts]
    assert min(map(len, parts)) >= {"iid": records // devices, "quantity": 3, "dirichlet": 1, "shards": 1}[rule]


def test_a_device_of_two_shards_has_few_labels() -> None:
    labels = [str(n % 10) for n in range(1000)]
    for part in rules.shards(labels, 10, 2, generator(1)):
        assert len({labels[record] for record in part}) <= 2
        assert len(part) == 100


def test_a_small_alpha_makes_devices_less_alike() -> None:
    def largest_share(alpha: float) -> float:
        parts = rules.dirichlet(LABELS, 10, alpha, 1, generator(5))
        shares = [max(np.unique([LABELS[r] for r in part], return_counts=True)[1]) / len(part) for part in parts]
        return float(np.mean(shares))

    assert largest_share(0.05) > 0.8 > largest_share(1.0) > 0.35 > largest_share(1000.0)


@pytest.mark.parametrize(
    ("deal", "told"),
    [
        (lambda: rules.dirichlet(LABELS[:50], 10, 0.5, 10, generator(0)), "50 records: fewer than 10 devices of at"),
        (lambda: rules.dirichlet(LABELS[:100], 10, 0.01, 10, generator(0)), "no dealing by labels with alpha 0.01"),
        (lambda: rules.quantity(9, 10, 0.5, 1, generator(0)), "9 records: fewer than 10 devices"),
        (lambda: rules.shards(LABELS[:19], 10, 2, generator(0)), "19 records: fewer than 10 devices of 2 shards"),
    ],
)
def test_what_cannot_be_dealt_is_told(deal: Callable[[], object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        deal()
