"""What a graph is compared with, computed here or in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack
from fedlora_export.checks.torch_logits import Sample, torch_logits

_IN_A_NEW_PROCESS = """
import sys
import numpy as np
from fedlora.base.pack import open_pack
from fedlora_export.checks.torch_logits import torch_logits

expected = torch_logits(open_pack(sys.argv[1]))
assert "torch" not in sys.modules
np.savez(sys.argv[2], base=expected.base, first=expected.rows[0], second=expected.rows[1])
"""


def test_a_sample_is_the_same_whoever_makes_it(base: BasePack) -> None:
    first, second = Sample.of(base), Sample.of(base)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    for left, right in zip(first.adapters, second.adapters, strict=True):
        for module, pair in left.pairs.items():
            np.testing.assert_array_equal(pair.lora_B, right.pairs[module].lora_B)
    some = next(iter(first.adapters[0].pairs))
    assert not np.array_equal(first.adapters[0].pairs[some].lora_A, first.adapters[1].pairs[some].lora_A)


def test_where_torch_is_not_loaded_another_process_computes_the_same(base: BasePack, tmp_path: Path) -> None:
    script, output = tmp_path / "script.py", tmp_path / "logits.npz"
    script.write_text(_IN_A_NEW_PROCESS, encoding="utf-8")  # a plain script, without a guard
    subprocess.run([sys.executable, script, base.directory, output], check=True, timeout=120)
    here, there = torch_logits(base), np.load(output)
    assert here is not None
    for got, expected in ((there["base"], here.base), (there["first"], here.rows[0]), (there["second"], here.rows[1])):
        np.testing.assert_allclose(got, expected, atol=1e-4)
