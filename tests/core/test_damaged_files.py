"""Files of strangers, damaged at random: each is refused with an error of ours, or read as something sound."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import Target, fuzz_targets

TARGETS = [
    "pack as it is", "pack, signed again", "config.json of any family", "PEFT directory", "adapter file",
    "adapter file and manifest", "graph manifest", "graph",
]  # fmt: skip
MUTATIONS = 100_000
MOST_SECONDS = 5.0  # for one file; a sound one takes a millisecond
MOST_KILOBYTES = 400_000  # of memory that the whole test adds


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return fuzz_targets(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_refused_by_us_or_read_as_something_sound(
    targets: Mapping[str, Target], name: str, seed: int
) -> None:
    targets[name](random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_very_many_damaged_files_end_in_time_and_take_no_memory(targets: Mapping[str, Target], name: str) -> None:
    before, slowest, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, 0
    count = -(-MUTATIONS // len(TARGETS))
    for seed in range(count):
        begin = time.perf_counter()
        try:
            taken += targets[name](random.Random(seed))
        except BaseException as error:
            error.add_note(f"target {name}, seed {seed}")
            raise
        slowest = max(slowest, time.perf_counter() - begin)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{name}: {count} files, {taken} taken, slowest {slowest * 1e3:.0f} ms, {grown / 1e3:.0f} MB more")
    assert slowest < MOST_SECONDS
    assert grown < MOST_KILOBYTES
    assert taken < 0.8 * count
