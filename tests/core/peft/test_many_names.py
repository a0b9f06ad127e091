"""Lists of a stranger's configuration meet every module: together they take no longer than each by itself."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fedlora.errors import AdapterError, ConfigError
from fedlora.files.tensor_dictionary import write_tensors
from fedlora.peft import plain_names
from fedlora.peft.directory import CONFIG, WEIGHTS, read_peft
from fedlora.peft.patterns import by_module
from fedlora.peft.plain_names import is_plain

MOST_S = 1.5  # of processor time; list by list it would be some ten times as much
NAMES = [f"n{number}" for number in range(60_000)]
MODULES = [f"model.layers.{layer}.mlp.up_proj" for layer in range(400)]


@pytest.fixture
def quickly() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it took more than {MOST_S} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_S)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    one = np.ones((1, 1), np.float32)
    return {f"base_model.model.{module}.lora_{factor}.weight": one for module in MODULES for factor in "AB"}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"target_modules": [*NAMES, "up_proj"]}, ""),
        ({"target_modules": NAMES}, "does not target"),
        ({"target_modules": ["up_proj"], "exclude_modules": NAMES}, ""),
        ({"target_modules": ["up_proj"], "layers_to_transform": list(range(100_000))}, ""),
        ({"target_modules": ["up_proj"], "layers_to_transform": [399], "layers_pattern": [*NAMES, "layers"]}, "layers.0"),
        ({"modules_to_save": NAMES}, "modules_to_save has 60000 names; at most 1024 are read"),
        ({"modules_to_save": NAMES[:1000]}, ""),
        ({"rank_pattern": {f"x.y{number}.up_proj": 1 for number in range(2000)}}, ""),
        ({"rank_pattern": {f"{'a.' * 90}b{number}": 1 for number in range(4096)}}, ""),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA'], which is not supported"),
        ({"rank_pattern": {f"(a|b)*{number}": 1 for number in range(4096)}}, "4096 expressions; at most 16 are read"),
    ],
)  # fmt: skip
def test_many_names_are_read_in_a_moment(
    quickly: None, tmp_path: Path, weights: dict[str, Any], config: dict[str, Any], told: str
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config}))
    write_tensors(tmp_path / WEIGHTS, weights, {})
    if not told:
        assert len(read_peft(tmp_path).adapter.pairs) == len(MODULES)
        return
    with pytest.raises(AdapterError, match=re.escape(told)):
        read_peft(tmp_path)


def test_what_would_take_long_all_the_same_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_names, "_MAX_STEPS", 100)
    with pytest.raises(ConfigError, match="more than 100 parts of names to compare; write each dot as"):
        by_module({f"a.a.{number:03d}": 1 for number in range(50)}, ["a.a.x00"])


def test_plain_keys_fit_as_expressions_do() -> None:
    chance = random.Random(3)
    fitted = 0
    for _ in range(400):
        keys = {
            "".join(chance.choice(["a", "b", ".", r"\.", r"\-", "-"]) for _ in range(chance.randint(0, 4)))
            for _ in range(3)
        }
        pattern = {
            chance.choice(["", "^"]) + key + chance.choice(["", "$"]): number for number, key in enumerate(sorted(keys))
        }
        modules = ["".join(chance.choice("ab.-") for _ in range(chance.randint(0, 6))) for _ in range(4)]
        assert all(map(is_plain, pattern))
        expected = {
            module: next(value for key, value in pattern.items() if re.match(rf"(?:.*\.)?(?:{key})$", module))
            for module in modules
            if any(re.match(rf"(?:.*\.)?(?:{key})$", module) for key in pattern)
        }
        assert by_module(pattern, modules) == expected
        fitted += len(expected)
    assert fitted > 100
