"""How a step is cut to fit the memory that there is, and whether it does."""

# S sequences, T tokens of each

from __future__ import annotations

import itertools
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
from fedlora.family import DecoderShape
from fedlora.lora.config import LoraConfig
from fedlora_client.decoder.budget import plan_step, workspace_elements
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.layers.step_plan import Memory, MemoryPlan, StepPlan
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.plain_ops import PlainOps
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.dense import random_problem
from tests.tiny.adapters import random_adapter
from tests.tiny.checkpoints import llama_shape
from tests.tiny.families import family_pack
from tests.tiny.llamas import Packs, Variant, save_pack

CPU = torch.device("cpu")
PLAIN = Compute(CPU, torch.float32, PlainOps())
# The size of a model of 135 million parameters.
SHAPE = llama_shape(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    head_dim=64, vocab_size=49152, max_position_embeddings=2048,
)  # fmt: skip
PLENTY = 10**12
VARIANTS = {
    "grouped heads": Variant(),
    "several parts of a vocabulary": Variant(vocab=9001, hidden=32, heads=4, kv_heads=2, layers=1),
    "as many heads for keys": Variant(tied=False, heads=4, kv_heads=4, head_dim=16, inner=64),
    "heads wider than the model": Variant(heads=3, kv_heads=1, head_dim=64, inner=96, hidden=96),
    "three wide layers": Variant(layers=3, inner=400),
    "several blocks of queries": Variant(context=600, layers=1),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_workspace_is_what_was_foreseen(packs: Packs, compute: Compute, variant: str) -> None:
    check_workspace(packs(VARIANTS[variant]), compute)


@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "phi3", "gemma2", "gemma3"])
def test_the_workspace_of_every_family_is_what_was_foreseen(compute: Compute, family: str) -> None:
    check_workspace(family_pack(family), compute)


def check_workspace(base: BasePack, compute: Compute) -> None:
    """For batches, ranks and schedules of every size: the foreseen bytes are those that are there, or 2% more at most."""
    targets = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in base.shape.linear_modules()))
    decoder, context = Decoder(base, compute), base.shape.max_positions
    for rank, (sequences, length), chunk_rows in itertools.product((1, 24), ((1, 16), (2, context)), (16, 256)):
        problem = random_problem(base, sequences, length)
        problem = problem._replace(targets=problem.tokens)  # the most rows of logits
        adapter = random_adapter(base, LoraConfig(rank=rank, alpha=8.0, target_modules=targets))
        for kept_blocks in range(base.shape.num_layers):
            memory_plan, space = MemoryPlan(kept_blocks=kept_blocks, chunk_rows=chunk_rows), decoder.workspace()
            lora = decoder.lora(adapter)
            decoder.add_gradients(*problem, lora, space, memory_plan)
            decoder.losses(*problem[:3], lora, space, memory_plan)  # as an evaluation between two steps
            foreseen = sum(workspace_elements(base.shape, length, rank, sequences, memory_plan).values())
            assert 1 <= foreseen / (space.size_bytes / 4) <= 1.02, (rank, length, kept_blocks, chunk_rows)


def plan(
    memory_mb: int = 0,
    *,
    free: int = PLENTY,
    resident: int = 200_000_000,
    shape: DecoderShape = SHAPE,
    adapters: int = 1,
    **config: Any,
) -> StepPlan:
    known = TrainConfig(memory_mb=memory_mb, **config)
    return plan_step(shape, known, 16, PLAIN, Memory(resident=resident, coming=50_000_000, free=free), adapters)


def least(**config: Any) -> int:
    """The megabytes that the refusal of too few asks for."""
    with pytest.raises(ConfigError) as caught:
        plan(1, **config)
    found = re.search(
        r"^train.memory_mb is 1 and \d+ MB are free; with windows of \d+ tokens a training takes at least (\d+) MB, of "
        r"which the process has 200 already: give it more, or lower train.sequence_length$",
        str(caught.value),
    )
    assert found, caught.value
    return int(found[1])


@pytest.mark.parametrize("checkpointing", ["auto", "on", "off"])
@pytest.mark.parametrize("sequence_length", [32, 128, 1024])
def test_too_little_memory_is_refused_with_the_least_that_would_do(checkpointing: str, sequence_length: int) -> None:
    needed = least(checkpointing=checkpointing, sequence_length=sequence_length)
    config: dict[str, Any] = {"checkpointing": checkpointing, "sequence_length": sequence_length}
    accepted = plan(needed, **config)
    assert accepted.micro_batch == 1
    assert 250_000_000 + accepted.step_bytes <= needed * 1_000_000
    with pytest.raises(ConfigError, match=f"at least {needed} MB"):
        plan(needed - 1, **config)


def test_what_the_machine_has_left_bounds_a_step_too() -> None:
    with pytest.raises(ConfigError, match=r"train.memory_mb is not set and 60 MB are free; .* takes at least"):
        plan(free=60_000_000)
    with pytest.raises(ConfigError, match=r"train.memory_mb is 4000 and 60 MB are free"):
        plan(4000, free=60_000_000)


@given(budgets=st.lists(st.integers(450, 9000), min_size=2, max_size=6), length=st.sampled_from([32, 128, 1024]))
def test_a_larger_budget_is_never_used_for_less(budgets: list[int], length: int) -> None:
    plans: list[tuple[int, int, int]] = []
    for memory_mb in sorted(budgets):
        try:
            found = plan(memory_mb, sequence_length=length)
        except ConfigError:
            assert not plans
            continue
        assert 250_000_000 + found.step_bytes <= memory_mb * 1_000_000
        plans.append((found.micro_batch, found.memory_plan.chunk_rows, found.memory_plan.kept_blocks))
    # More windows at a time go before more rows of logits, and these before more blocks that are kept.
    assert plans == sorted(plans)
    for (micro, chunk, kept), (next_micro, next_chunk, next_kept) in itertools.pairwise(plans):
        assert kept <= next_kept or (micro, chunk) < (next_micro, next_chunk)


def test_checkpointing_that_is_on_or_off_is_obeyed() -> None:
    for memory_mb in (0, 100_000):
        assert plan(memory_mb, checkpointing="on").memory_plan.kept_blocks == 0
        assert plan(memory_mb, checkpointing="off").memory_plan.kept_blocks == SHAPE.num_layers - 1
        assert plan(memory_mb, checkpointing="auto").memory_plan.kept_blocks == SHAPE.num_layers - 1
    needed = least()
    assert plan(needed, checkpointing="on").memory_plan.kept_blocks == 0
    assert plan(needed, checkpointing="auto").memory_plan.kept_blocks == 0
    with pytest.raises(ConfigError):
        plan(needed, checkpointing="off")


def test_without_a_budget_activations_are_kept_in_no_more_than_a_quarter_of_what_is_free() -> None:
    kept = []
    for free_mb in (1_000, *range(1_200, 4_000, 200), 100_000):
        free = free_mb * 1_000_000
        found = plan(free=free)
        kept.append(found.memory_plan.kept_blocks)
        assert not kept[-1] or found.step_bytes <= free // 4
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, SHAPE.num_layers - 1)
    assert len(set(kept)) > 2


def test_a_batch_is_never_computed_in_parts_larger_than_itself_or_smaller_than_a_window() -> None:
    assert plan(batch_size=3, sequence_length=32).micro_batch == 3
    assert plan(batch_size=8, sequence_length=2048).micro_batch == 1
    assert plan(batch_size=8, sequence_length=32, adapters=100).micro_batch == 1


def test_dropout_plain_torch_and_adapters_side_by_side_take_more() -> None:
    config: dict[str, Any] = {"sequence_length": 128, "batch_size": 1}
    alone = plan(**config)
    assert plan(dropout=0.1, **config).step_bytes > alone.step_bytes
    assert plan(adapters=2, **config).step_bytes > alone.step_bytes
    assert "1 window at a time" in str(alone)


# In a process of its own: what is the least, and the peak of a training that may take some megabytes more.
TRAINING = """
import json, re, sys
import numpy as np, torch
from dataclasses import replace
from pathlib import Path
from fedlora.errors import ConfigError
from fedlora.base.pack import open_pack
from fedlora.config.run import LoraSection, RunConfig, TrainConfig
from fedlora_client.ops.compute import choose_compute
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.training.memory import peak_bytes
from fedlora_client.training.trainer import Watcher, train
from fedlora_client.data.windows import Windows

torch.set_num_threads(1)
pack, dtype, kernels, beyond, dropout, batch = sys.argv[1:]
decoder = Decoder(open_pack(Path(pack)), choose_compute(dtype, kernels, "cpu"))
adapter = RunConfig(lora=LoraSection(rank=8)).first_adapter(decoder.base)
tokens = torch.from_numpy(np.random.default_rng(0).integers(0, decoder.shape.vocab_size, (int(batch), 129)))
starts = torch.zeros(len(tokens), 128, dtype=torch.int64)
windows = Windows(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), starts)
config = TrainConfig(steps=2, batch_size=len(tokens), sequence_length=128, memory_mb=1, dropout=float(dropout))
plans = []
for attempt in range(4):  # the first names the least; being refused may itself have taken a page or two
    try:
        train(decoder, adapter, windows, config, np.random.default_rng(0), Watcher(on_plan=plans.append))
        break
    except ConfigError as error:
        least = int(re.search(r"at least (\\d+) MB", str(error))[1])
        config = replace(config, memory_mb=least + int(beyond))
print(json.dumps([config.memory_mb, peak_bytes(), plans[0].micro_batch, plans[0].memory_plan.kept_blocks]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> BasePack:
    """3.2 million parameters: a step of a full batch takes more than the adapter and the base."""
    variant = Variant(hidden=256, inner=688, layers=3, vocab=4096, heads=8, kv_heads=4, head_dim=32, context=128)
    return save_pack(variant, tmp_path_factory.mktemp("large") / "pack")


def peak_within_budget(
    base: BasePack, dtype: str, kernels: str, *, beyond: int, dropout: float = 0.0, batch: int = 4
) -> list[int]:
    """(windows at a time, kept blocks) of a training that may take `beyond` MB more than the least, and does not."""
    options = [dtype, kernels, str(beyond), str(dropout), str(batch)]
    command = [sys.executable, "-c", TRAINING, str(base.directory), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    memory_mb, peak, micro_batch, kept_blocks = json.loads(result.stdout)
    assert peak <= memory_mb * 1_000_000
    return [micro_batch, kept_blocks]


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


@pytest.mark.slow
@needs_proc
def test_a_process_stays_within_every_budget_from_the_least_to_plenty(large: BasePack) -> None:
    plans = [peak_within_budget(large, "float32", "on", beyond=beyond) for beyond in (0, 10, 500)]
    assert plans[0] == [1, 0]
    assert plans[0] < plans[1] < plans[2]
    assert plans[2][1] == large.shape.num_layers - 1


@needs_proc
@pytest.mark.parametrize(
    ("dtype", "kernels", "dropout"),  # every pair of them, with float32 and the kernels above
    [("bfloat16", "on", 0.1), ("bfloat16", "off", 0.0), ("float32", "off", 0.1)],
)
def test_a_process_stays_within_the_least_budget_however_it_computes(
    large: BasePack, dtype: str, kernels: str, dropout: float
) -> None:
    # Of the least, a step takes one window at a time: two of them show all that it does.
    assert peak_within_budget(large, dtype, kernels, beyond=0, dropout=dropout, batch=2)[0] == 1
