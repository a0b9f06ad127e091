"""An adapter that is read module by module is the one that is read whole, and is refused where that one is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from fedlora.errors import AdapterError
from fedlora.files.tensor_file import Dtype
from fedlora.lora.adapter import Adapter
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.peft.mapped import open_mapped
from fedlora.peft.origin import ORIGIN_KEY, Origin, OriginPart, origin_in

from tests.tiny.adapters import ALL_RANKS, adapter_on
from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape().linear_modules()
PART = OriginPart(name="a", sha256="0" * 64, weight=-0.5)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_its_factors_are_those_that_are_read_whole(tmp_path: Path, dtype: Dtype) -> None:
    head: tuple[Dtype, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = ("F32", np.ones((3, 2), np.float32))
    content = PeftDirectory(
        adapter=adapter_on(ALL_RANKS, MODULES), dtype=dtype, base_fingerprint="b" * 64,
        saved_modules={"base_model.model.score.weight": head},
    )  # fmt: skip
    write_peft(tmp_path / "a", content)
    mapped, whole = open_mapped(tmp_path / "a"), read_peft(tmp_path / "a")
    assert mapped.config == whole.adapter.config
    assert mapped.base_fingerprint == whole.base_fingerprint
    assert mapped.shapes == {module: pair.shape for module, pair in whole.adapter.pairs.items()}
    for module, pair in whole.adapter.pairs.items():
        np.testing.assert_array_equal(mapped.pair(module).lora_A, pair.lora_A)
        np.testing.assert_array_equal(mapped.pair(module).lora_B, pair.lora_B)
    assert mapped.beside().beside.keys() == whole.beside.keys()
    weights = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert mapped.sha256() == hashlib.sha256(weights).hexdigest()


def test_a_rank_that_the_configuration_does_not_say_is_refused_before_anything_is_read(
    tmp_path: Path, adapter: Adapter
) -> None:
    write_peft(tmp_path / "a", PeftDirectory(adapter=adapter))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    with pytest.raises(
        AdapterError, match=r"expected lora_A \[5, I\] and lora_B \[O, 5\].*got \[4, 32\] and \[32, 4\]"
    ):
        open_mapped(tmp_path / "a")


@pytest.mark.parametrize(
    "text",
    [
        "no JSON", "[]", "{}", '{"how": "x", "parts": [{}]}', '{"how": 1, "parts": []}',
        '{"how": "x", "parts": [{"name": "a", "sha256": "short", "weight": 1}]}',
        '{"how": "x", "parts": [{"name": "a", "sha256": "%s", "weight": "1"}]}' % ("0" * 64),
        '{"how": "x", "parts": [{"name": "a", "sha256": "%s", "weight": NaN}]}' % ("0" * 64),
        '{"how": "x", "parts": [{"name": "a", "sha256": "%s", "weight": 1' % ("0" * 64) + "0" * 400 + "}]}",
    ],
)  # fmt: skip
def test_what_an_adapter_was_made_of_is_refused_where_fedlora_did_not_write_it(text: str) -> None:
    with pytest.raises(AdapterError, match=rf"^here: {ORIGIN_KEY} (is not as|holds other values than) fedlora"):
        origin_in({ORIGIN_KEY: text}, "here")


def test_what_an_adapter_was_made_of_is_read_as_it_was_written() -> None:
    origin = Origin(how="cat", parts=(PART,))
    assert origin_in(origin.to_metadata(), "here") == origin
    assert origin_in({}, "here") is None
