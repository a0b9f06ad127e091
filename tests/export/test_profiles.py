"""Every profile of every family, against transformers on the same weights; and what only some profiles can do."""

# S rows, T tokens of each, V vocabulary

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.exported.inputs import joined_name
from fedlora.exported.profiles import PROFILES, Profile, graph_name
from fedlora.graph.packed_layers import FLOAT_ACCURACY, INT8_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_export.checks.graph_runs import adapter_feeds, numbered, run_graph
from fedlora_export.export import export_base
from numpy.typing import NDArray

from tests.export.graph_runs import graph_logits, open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle
from tests.tiny.adapters import random_adapter
from tests.tiny.families import FAMILIES, family_pack
from tests.tiny.tokens import random_tokens

TOKENS = 15  # more than the window of those that have one


def adapter_of(pack: BasePack, rank: int = 4, seed: int = 1) -> Adapter:
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in pack.model.linear_modules()))
    return random_adapter(pack, LoraConfig(rank=rank, alpha=8.0, target_modules=leaves), seed)


@cache
def expected(family: str, seed: int | None) -> NDArray[np.float32]:  # [2, T, V]
    """transformers' logits over the dequantized weights, W + scaling B A where there is an adapter."""
    pack = family_pack(family)
    model = oracle(pack)
    with torch.no_grad():
        if seed is not None:
            adapter = adapter_of(pack, seed=seed)
            for module, pair in adapter.pairs.items():
                update = adapter.config.scaling_of(module) * pair.lora_B @ pair.lora_A
                model.get_submodule(module).weight += torch.from_numpy(update)
        logits: NDArray[np.float32] = model(torch.from_numpy(random_tokens(pack, 2, TOKENS))).logits.numpy()
    return logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("families")

    @cache
    def export(family: str) -> BasePack:
        """The family's pack with its graphs, each of which the exporter compared with the trainer's logits."""
        for graph in export_base(
            family_pack(family), folder / family, profiles=PROFILES, accuracy_level=FLOAT_ACCURACY
        ):
            assert graph.exact is not None
        return open_pack(folder / family)

    return export


def session_of(pack: BasePack, profile: Profile) -> Any:
    return open_session(pack.directory / graph_name(pack.model, profile))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("profile", ["base", "compat", "fast"])
def test_the_logits_are_those_of_transformers(exported: Any, family: str, profile: Profile) -> None:
    pack = exported(family)
    session, tokens = session_of(pack, profile), random_tokens(pack, 2, TOKENS)
    for seed in (None,) if profile == "base" else (None, 1):
        adapter = None if seed is None else adapter_of(pack, seed=seed)
        adapter_inputs, logits = adapter_feeds(pack, profile, [adapter]), expected(family, seed)
        assert_close(graph_logits(session, pack, tokens, adapter_inputs), logits)
        assert_close(graph_logits(session, pack, tokens, adapter_inputs, steps=(9, 1, 1, 1, 1, 1, 1)), logits)
        # ONNX Runtime's attention takes several tokens after a cache for one sequence only.
        assert_close(graph_logits(session, pack, tokens[:1], adapter_inputs, steps=(4, 1, 7, 3)), logits[:1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("profile", ["rows", "kernel"])
def test_every_row_speaks_with_its_own_adapter(exported: Any, family: str, profile: Profile) -> None:
    pack = exported(family)
    tokens = random_tokens(pack, 2, TOKENS)
    adapters = [adapter_of(pack, seed=1), adapter_of(pack, seed=2)]
    got, positions = run_graph(session_of(pack, profile), pack, profile, tokens, np.ones_like(tokens), adapters)
    assert positions.tolist() == [[TOKENS // 2 - 1, TOKENS - 2, TOKENS - 1]] * 2
    for row, seed in enumerate((1, 2)):
        assert_close(got[row], expected(family, seed)[row, positions[row]])


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # the rotation outside the fused attention, and within it
@pytest.mark.parametrize("profile", ["rows", "kernel"])
def test_rows_of_any_length_go_through_one_batch_in_parts(exported: Any, family: str, profile: Profile) -> None:
    """Three rows: one reads its prompt in two parts, one in one, one has nothing new to read in the second step."""
    pack = exported(family)
    shape, session = pack.shape, session_of(pack, profile)
    tokens = np.concatenate([random_tokens(pack, 2, TOKENS), random_tokens(pack, 2, TOKENS)[:1]])
    adapters: list[Adapter | None] = [adapter_of(pack, seed=1), adapter_of(pack, rank=2, seed=2), None]
    alone = [
        graph_logits(session_of(pack, "compat"), pack, tokens[i : i + 1], adapter_feeds(pack, "compat", [adapter]))[0]
        for i, adapter in enumerate(adapters)
    ]
    size = (3, shape.num_kv_heads, 32, shape.head_dim)  # a buffer that is longer than what it holds
    names = [f"{i}.{kind}" for i in range(shape.num_layers) for kind in ("key", "value")]
    past = {f"past_key_values.{name}": np.full(size, 7, np.float32) for name in names}
    done = np.zeros(3, np.int32)
    with (
        numbered(pack, adapters)
        if profile == "kernel"
        else nullcontext(adapter_feeds(pack, profile, adapters)) as adapter_inputs
    ):
        for new in (np.array([4, 9, 6], np.int32), np.array([8, 1, 0], np.int32), np.array([1, 1, 1], np.int32)):
            part = np.zeros((3, new.max()), np.int64)
            for row, count in enumerate(new):
                part[row, :count] = tokens[row, done[row] : done[row] + count]
            done = done + new
            feeds = {"input_ids": part, "lengths": done, "new_tokens": new, **past, **adapter_inputs}
            logits, *present = session.run(None, feeds)
            past = dict(zip(past, present, strict=True))
            for row in range(3):
                if not new[row]:
                    continue
                assert_close(logits[row, 0], alone[row][done[row] - 1])


@pytest.mark.parametrize("keep", [1, 4])
def test_logits_may_be_asked_for_of_the_last_tokens_only(exported: Any, keep: int) -> None:
    pack = exported("qwen3")
    tokens = random_tokens(pack, 2, TOKENS)
    adapter_inputs: Any = {"logits_to_keep": np.array([keep], np.int64)}
    for profile in ("base", "compat", "fast"):
        session = session_of(pack, profile)
        got = graph_logits(session, pack, tokens, adapter_inputs)
        assert got.shape[1] == keep
        assert_close(got, graph_logits(session, pack, tokens)[:, -keep:])


def test_a_joined_input_takes_an_adapter_of_some_of_its_modules_in_mixed_ranks(exported: Any) -> None:
    pack = exported("llama")
    modules = list(pack.shape.linear_modules())
    ranks = {module: 1 + number % 5 for number, module in enumerate(modules)}
    whole = random_adapter(pack, LoraConfig(rank=4, alpha=8.0, rank_pattern=ranks))
    some = Adapter(whole.config, {m: pair for m, pair in whole.pairs.items() if not m.endswith(("q_proj", "up_proj"))})
    tokens = random_tokens(pack, 1, 9)
    feeds = adapter_feeds(pack, "fast", [some])
    group = joined_name(pack.shape.linear_groups()[0])
    assert feeds[f"{group}.lora_A.weight"].shape[1] == ranks[modules[1]] + ranks[modules[2]]
    assert_close(
        graph_logits(session_of(pack, "fast"), pack, tokens, feeds),
        graph_logits(session_of(pack, "compat"), pack, tokens, adapter_feeds(pack, "compat", [some])),
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_all_profiles_read_the_same_bytes_of_the_same_file(exported: Any, profile: Profile) -> None:
    """Joined products take the run of bytes of their modules; nothing of the pack is in a graph's own file."""
    pack = exported("llama-biases")
    model = onnx.load(pack.directory / graph_name(pack.model, profile), load_external_data=False)
    covered: set[tuple[int, int]] = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == "model.safetensors"
            covered.add((int(where["offset"]), int(where["offset"]) + int(where["length"])))
    entries = pack.weights.entries.values()
    for entry in entries:
        assert any(begin <= entry.offset and entry.offset + entry.size_bytes <= end for begin, end in covered)
    assert {begin for begin, _ in covered} <= {entry.offset for entry in entries}
    assert {end for _, end in covered} <= {entry.offset + entry.size_bytes for entry in entries}


@pytest.mark.parametrize("profile", ["compat", "fast"])
def test_a_shared_buffer_of_past_and_present_gives_the_same_logits(exported: Any, profile: Profile) -> None:
    pack = exported("mistral-window")
    shape, session, tokens = pack.shape, session_of(pack, profile), random_tokens(pack, 1, TOKENS)
    adapter_inputs = adapter_feeds(pack, profile, [adapter_of(pack)])
    names = [f"{i}.{kind}" for i in range(shape.num_layers) for kind in ("key", "value")]
    size = (1, shape.num_kv_heads, 40, shape.head_dim)
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(np.full(size, 5, np.float32)) for name in names}
    parts, read = [], 0
    for count in (6, 1, 5, 1, 2):
        part, mask = tokens[:, read : read + count], np.ones((1, read + count), np.int64)
        binding = session.io_binding()
        for name, value in {"input_ids": part, "attention_mask": mask, **adapter_inputs}.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        parts.append(binding.get_outputs()[-1].numpy().copy())
        read += count
    assert_close(np.concatenate(parts, 1), graph_logits(session, pack, tokens, adapter_inputs))


def test_int8_activations_are_a_little_off_and_marked_in_every_product(tmp_path: Path) -> None:
    pack = family_pack("llama-llama3")
    (graph,) = export_base(pack, tmp_path / "model", accuracy_level=INT8_ACCURACY)
    assert graph.exact is not None
    assert graph.as_written is not None
    scale = float(np.abs(expected("llama-llama3", None)).max())
    assert graph.exact["base"] < 1e-4 * scale < graph.as_written["base"] < 0.2 * scale
    levels = {
        attribute.i
        for node in onnx.load(graph.path, load_external_data=False).graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {INT8_ACCURACY}
