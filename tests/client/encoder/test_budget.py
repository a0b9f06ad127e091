"""How a step of an encoder is cut to fit the memory that there is, and whether it does."""

# S texts, T tokens of each

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import TrainConfig
from fedlora.errors import ConfigError
from fedlora.family import EncoderShape, model_shape
from fedlora_client.encoder.budget import plan_step, step_bytes
from fedlora_client.layers.step_plan import Memory, StepPlan
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.plain_ops import PlainOps

from tests.tiny.encoders import save_encoder_pack

PLAIN = Compute(torch.device("cpu"), torch.float32, PlainOps())
PLENTY = 10**12
_BASE = {
    "architectures": ["BertForSequenceClassification"], "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip


def shape() -> EncoderShape:
    """The size of a model of 110 million parameters."""
    found = model_shape(_BASE, "test")
    assert isinstance(found, EncoderShape)
    return found


def plan(memory_mb: int = 0, *, free: int = PLENTY, adapters: int = 1, **config: Any) -> StepPlan:
    known = TrainConfig(memory_mb=memory_mb, **config)
    memory = Memory(resident=200_000_000, coming=50_000_000, free=free)
    return plan_step(shape(), known, 16, PLAIN, memory, adapters)


def test_with_plenty_of_memory_products_are_large_and_every_block_is_kept() -> None:
    assert (plan().micro_batch, plan().memory_plan.kept_blocks) == (8, 11)
    assert plan(sequence_length=512).micro_batch == 2
    assert plan(adapters=4).micro_batch == 2


def test_with_less_memory_first_blocks_are_computed_again_then_texts_come_by_one() -> None:
    plans = [plan(megabytes) for megabytes in (2000, 700, 500, 420, 360)]
    kept, texts = ([p.memory_plan.kept_blocks for p in plans], [p.micro_batch for p in plans])
    assert kept[0] == 11
    assert all(0 <= p.memory_plan.kept_blocks < 11 for p in plans[1:])
    assert texts == sorted(texts, reverse=True)
    assert texts[0] == 8 > texts[-1] >= 1
    for megabytes, p in zip((2000, 700, 500, 420, 360), plans, strict=True):
        assert 250_000_000 + p.step_bytes <= megabytes * 1_000_000


def test_checkpointing_is_done_where_it_is_asked_for() -> None:
    assert plan(checkpointing="on").memory_plan.kept_blocks == 0
    assert plan(checkpointing="off").memory_plan.kept_blocks == 11


def test_the_least_that_is_named_does() -> None:
    with pytest.raises(ConfigError, match=r"takes at least \d+ MB") as caught:
        plan(260)
    found = re.search(r"at least (\d+) MB", str(caught.value))
    assert found
    assert plan(int(found[1])).micro_batch == 1
    with pytest.raises(ConfigError):
        plan(int(found[1]) - 1)


def test_without_a_bound_activations_take_up_to_a_quarter_of_what_is_free() -> None:
    free = 50_000_000 + 4 * plan(checkpointing="on").step_bytes + 200_000_000
    limited = plan(free=free)
    assert 0 < limited.memory_plan.kept_blocks < 11
    assert limited.step_bytes <= free // 4


_STEP = """
import json, sys
import numpy as np, torch
from fedlora.lora.adapter import initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.base.pack import open_pack
from fedlora_client.ops.compute import choose_compute
from fedlora_client.layers.step_plan import MemoryPlan
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.training.memory import give_back_freed, give_back_large_blocks, peak_bytes, resident_bytes
base, texts, length, kept, dtype = open_pack(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
torch.set_num_threads(1)
encoder, modules = Encoder(base, choose_compute(dtype, "on", "cpu")), base.model.linear_modules()
leaves = tuple({module.rsplit(".", 1)[-1] for module in modules})
adapter = initial_adapter(LoraConfig(rank=16, target_modules=leaves), modules, np.random.default_rng(0))
lora = encoder.lora(adapter)
base.weights.path.read_bytes()
for module in modules:
    base.matrix(module).qweight.sum(dtype=np.int64)  # the pages are there
tokens = torch.ones(texts, length, dtype=torch.int64)
give_back_freed()
give_back_large_blocks()
before = resident_bytes()
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
for _ in range(2):
    encoder.add_gradients(
        tokens, tokens, torch.zeros_like(tokens), torch.ones(tokens.shape), lora, encoder.workspace(),
        MemoryPlan(kept_blocks=kept),
    )
print(json.dumps(peak_bytes() - before))
"""


@pytest.fixture(scope="module")
def wide_pack(tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    """Four layers of the size of BERT's."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 12}
    return save_encoder_pack("bert", tmp_path_factory.mktemp("wide") / "pack", **sizes, max_position_embeddings=512)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("texts", "length", "kept"), [(4, 128, 0), (4, 128, 3), (1, 512, 2)])
def test_a_step_takes_what_was_foreseen(wide_pack: BasePack, dtype: str, texts: int, length: int, kept: int) -> None:
    arguments = (str(wide_pack.directory), str(texts), str(length), str(kept), dtype)
    ran = subprocess.run([sys.executable, "-c", _STEP, *arguments], check=True, capture_output=True, text=True)
    assert isinstance(wide_pack.model, EncoderShape)
    compute = Compute(torch.device("cpu"), getattr(torch, dtype), _NoPlainOps())  # type: ignore[arg-type]
    config = TrainConfig(sequence_length=length)
    foreseen = step_bytes(wide_pack.model, config, 16, compute, texts, kept)
    assert 0.97 <= foreseen / json.loads(ran.stdout) <= 1.3


class _NoPlainOps:
    """Stands for the kernels, which copy nothing."""
