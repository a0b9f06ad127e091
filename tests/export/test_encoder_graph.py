"""The graph of an encoder: what it computes, against torch on the same pack, with padding and with adapters."""

# S texts, T tokens of the longest, L labels, H hidden size

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from fedlora.base.pack import open_pack
from fedlora.errors import GraphError
from fedlora.exported.inputs import BASE_PROPERTY, input_shapes, input_values
from fedlora.exported.profiles import PROFILES, Profile, graph_inputs, graph_name
from fedlora.graph.encoder import build_encoder
from fedlora.graph.graph_check import read_checked_graph
from fedlora.lora.adapter import Adapter
from fedlora_client.reference import logits as torch_scores
from fedlora_export.checks.graph_runs import run_graph
from fedlora_export.export import build_graph, export_base
from numpy.typing import NDArray

from tests.export.graph_runs import open_session
from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import EVERY, encoder_pack, shape_of
from tests.tiny.llamas import DEFAULT as DECODER
from tests.tiny.llamas import save_pack
from tests.tiny.tokens import random_texts

LENGTHS = (9, 17, 2, 1)
Sessions = Callable[[str, Profile], Any]


@pytest.fixture(scope="session")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    """A session on the graph of an encoder in a profile."""

    @cache
    def session(name: str, profile: Profile) -> Any:
        base = encoder_pack(name)
        folder = tmp_path_factory.mktemp("graph") / "model"
        shutil.copytree(base.directory, folder)
        graph = folder / graph_name(base.model, profile)
        ir.save(build_graph(base, profile, 0), graph)
        return open_session(graph)

    return session


def outputs(
    session: Any,
    tokens: NDArray[np.int64],
    mask: NDArray[np.int64],
    adapter_inputs: Mapping[str, NDArray[Any]] | None = None,
) -> NDArray[np.float32]:
    (result,) = session.run(None, {"input_ids": tokens, "attention_mask": mask, **(adapter_inputs or {})})
    return np.asarray(result)


@pytest.mark.parametrize("name", EVERY)
def test_the_graph_of_every_encoder_agrees_with_torch_on_a_padded_batch(sessions: Sessions, name: str) -> None:
    base, session = encoder_pack(name), sessions(name, "compat")
    tokens, mask = random_texts(base, LENGTHS)
    for adapter in (None, random_adapter(base)):
        expected = torch_scores(base, tokens, adapter, mask)
        assert_close(outputs(session, tokens, mask, input_values(adapter) if adapter else None), expected)
    size = "labels" if shape_of(base).labels else shape_of(base).hidden_size
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        ("scores" if shape_of(base).labels else "embedding", ["batch", size])
    ]


@pytest.mark.parametrize("profile", ["base", "fast", "rows", "kernel"])
@pytest.mark.parametrize("name", ["bert", "bare distilbert"])
def test_the_graph_of_every_profile_agrees_with_torch(sessions: Sessions, name: str, profile: Profile) -> None:
    base = encoder_pack(name)
    tokens, mask = random_texts(base, LENGTHS)
    first, second = random_adapter(base), random_adapter(base, seed=7)
    rows: dict[str, list[Adapter | None]] = {
        "base": [None] * 4,
        "fast": [first] * 4,
        "rows": [first, None, second, first],
        "kernel": [first, None, second, first],
    }
    expected = [
        torch_scores(base, tokens[row : row + 1], adapter, mask[row : row + 1])
        for row, adapter in enumerate(rows[profile])
    ]
    got, _ = run_graph(sessions(name, profile), base, profile, tokens, mask, rows[profile])
    assert_close(got[:, 0], np.concatenate(expected))


@pytest.mark.parametrize("name", ["bert", "bare roberta"])
def test_padding_changes_nothing(sessions: Sessions, name: str) -> None:
    base, session = encoder_pack(name), sessions(name, "compat")
    tokens, mask = random_texts(base, LENGTHS)
    together = outputs(session, tokens, mask)
    other = np.where(mask == 1, tokens, 77)
    assert_close(outputs(session, other, mask), together)
    for row, length in enumerate(LENGTHS):
        alone = outputs(session, tokens[row : row + 1, :length], mask[row : row + 1, :length])
        assert_close(alone, together[row : row + 1])


def test_a_text_as_long_as_the_context_agrees_with_torch(sessions: Sessions) -> None:
    base = encoder_pack("roberta")
    tokens, mask = random_texts(base, (shape_of(base).max_positions,))
    assert_close(outputs(sessions("roberta", "compat"), tokens, mask), torch_scores(base, tokens, None, mask))


def test_token_types_are_those_of_transformers_where_they_are_fed(sessions: Sessions) -> None:
    base, session = encoder_pack("bert"), sessions("bert", "compat")
    tokens, mask = random_texts(base, LENGTHS)
    types = (np.arange(tokens.shape[1]) >= 4).astype(np.int64) * mask
    with torch.no_grad():
        given = (torch.from_numpy(part) for part in (tokens, mask, types))
        expected = oracle(base)(*given).logits
    got = outputs(session, tokens, mask, {"token_type_ids": types})
    assert_close(got, expected)
    assert np.abs(got - outputs(session, tokens, mask)).max() > 0.05


def test_without_an_adapter_the_scores_are_those_of_rank_0_bit_for_bit(sessions: Sessions) -> None:
    base, session = encoder_pack("bert"), sessions("bert", "compat")
    tokens, mask = random_texts(base, LENGTHS)
    shapes = input_shapes(shape_of(base).linear_modules())
    zeros = {name: np.zeros([0 if n == -1 else n for n in shape], np.float32) for name, shape in shapes.items()}
    assert np.array_equal(outputs(session, tokens, mask, zeros), outputs(session, tokens, mask))


def test_every_single_input_acts_on_its_own_module(sessions: Sessions) -> None:
    base, session = encoder_pack("distilbert"), sessions("distilbert", "compat")
    tokens, mask = random_texts(base, LENGTHS)
    whole, plain = random_adapter(base), outputs(session, tokens, mask)
    for module in shape_of(base).linear_modules():
        single = Adapter(whole.config, {module: whole.pairs[module]})
        got = outputs(session, tokens, mask, input_values(single))
        assert_close(got, torch_scores(base, tokens, single, mask))
        assert not np.allclose(got, plain, atol=1e-4), module


def test_the_graph_reads_every_tensor_of_the_pack_and_names_its_base(tmp_path: Path) -> None:
    for name in ("bert", "roberta", "distilbert"):
        base = encoder_pack(name)
        folder = shutil.copytree(base.directory, tmp_path / name)
        ir.save(build_graph(base, "compat", 0), folder / "encoder.onnx")
        model = onnx.load(folder / "encoder.onnx", load_external_data=False)
        assert {entry.key: entry.value for entry in model.metadata_props} == {BASE_PROPERTY: base.fingerprint}
        external = {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
        read = {
            tensor
            for tensor in base.weights.entries
            if any(n == tensor or n.startswith(f"{tensor}.") for n in external)
        }
        assert read == set(base.weights.entries)
        inline = sum(len(t.raw_data) for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
        assert inline < 500
        onnx.checker.check_model(str(folder / "encoder.onnx"))


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="is a decoder"):
        build_encoder(save_pack(DECODER, tmp_path / "pack"))


def test_every_profile_is_exported_and_keeps_the_rules_of_a_graph(tmp_path: Path) -> None:
    written = export_base(encoder_pack("bert"), tmp_path / "out", profiles=PROFILES)
    base = open_pack(tmp_path / "out")
    names = {graph.profile: graph.path.name for graph in written}
    assert names == {profile: graph_name(base.model, profile) for profile in PROFILES}
    assert names["compat"] == "encoder.onnx"
    for graph in written:
        assert graph.exact is not None
        assert max(graph.exact.values()) < 1e-5
        assert read_checked_graph(graph.path, base, graph.profile, 4).facts.adapter_inputs == len(
            graph_inputs(base.model, graph.profile)
        )
