"""Which adapters the requests of the benchmark ask for, and how its prompts differ."""

from __future__ import annotations

import numpy as np
import pytest

from harness.popularity import WORKLOADS, uniform, zipf
from serve.engine import ROWS, ServeJob, adapters_of, row_prompts


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("adapters", [1, 2, 1000])
def test_every_request_of_a_workload_asks_for_one_of_the_adapters(name: str, adapters: int) -> None:
    chosen = WORKLOADS[name](adapters, 50, np.random.default_rng(0))
    assert chosen.shape == (50,)
    assert chosen.min() >= 0
    assert chosen.max() < adapters


def test_the_second_adapter_of_a_zipf_workload_is_asked_for_less_by_two_to_the_exponent() -> None:
    counts = np.bincount(zipf(100, 200_000, np.random.default_rng(1)))
    assert counts[0] / counts[1] == pytest.approx(2**1.1, rel=0.05)


def test_a_uniform_workload_asks_for_all_adapters_alike() -> None:
    counts = np.bincount(uniform(10, 100_000, np.random.default_rng(2)))
    assert counts.min() / counts.max() > 0.9


def test_a_case_tells_the_adapter_of_each_row() -> None:
    paths = [f"adapter-{row}" for row in range(ROWS)]
    job = ServeJob(kind="rows", model="", threads=1, capacity=64, vocab_size=512, adapters={"r8": paths})
    assert adapters_of(job, "none") == [""] * ROWS
    assert adapters_of(job, "one r8") == ["adapter-0"] * ROWS
    assert adapters_of(job, "16 r8") == paths


def test_no_two_prompts_begin_alike_whatever_their_seed() -> None:
    prompts = np.concatenate([row_prompts(512, 16, seed) for seed in range(3)])
    assert len({tuple(prompt[:8]) for prompt in prompts.tolist()}) == len(prompts)
