"""An adapter with a classification head of its own: in a graph, in a file, merged; against torch and PEFT."""

# S texts, T tokens of the longest, L labels, H hidden size

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import AdapterError, AdapterMismatchError, GraphError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.graph_manifest import check_graph_file, write_graph_manifest
from fedlora.exported.inputs import input_values
from fedlora.exported.profiles import HEAD_PROFILES, Profile, graph_inputs, graph_name
from fedlora.exported.sidecar import sidecar_of
from fedlora.graph.build import build_graph as graph_of
from fedlora.graph.graph_check import read_checked_graph
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora_client.reference import logits as torch_scores
from fedlora_export.adapter_export import export_peft, write_onnx_adapter
from fedlora_export.checks.graph_runs import adapter_feeds, run_graph
from fedlora_export.checks.verify import verify_adapter
from fedlora_export.export import export_base
from fedlora_export.merge import export_merged
from fedlora_export.onnx_model import onnx_model

from tests.client.encoder.test_head import with_head
from tests.export.graph_runs import open_session
from tests.export.test_encoder_graph import LENGTHS, Sessions, outputs, sessions
from tests.reference.agreement import assert_close
from tests.reference.oracles import peft_encoder
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import ENCODERS, encoder_pack, save_encoder_pack, shape_of
from tests.tiny.tokens import random_texts

__all__ = ["sessions"]


def for_labels(base: BasePack, labels: int, seed: int = 3) -> Adapter:
    """An adapter with the whole head, for so many labels."""
    generator = np.random.default_rng(seed)
    sizes = {name: [labels if n == -1 else n for n in shape] for name, shape in shape_of(base).head_inputs().items()}
    head = {name: generator.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    return with_extras(random_adapter(base, seed=seed), head)


@pytest.mark.parametrize("profile", sorted(HEAD_PROFILES))
@pytest.mark.parametrize("name", ENCODERS)
def test_one_graph_serves_adapters_with_heads_for_any_labels(sessions: Sessions, name: str, profile: Profile) -> None:
    base, session = encoder_pack(name), sessions(name, profile)
    tokens, mask = random_texts(base, LENGTHS)
    for adapter in (for_labels(base, 5), None, with_head(base, random_adapter(base)), for_labels(base, 3), None):
        expected = torch_scores(base, tokens, adapter, mask)
        got, _ = run_graph(session, base, profile, tokens, mask, [adapter] * len(tokens))
        assert_close(got[:, 0], expected)
    assert expected.shape[1] == 3


@pytest.mark.parametrize("profile", ["rows", "kernel"])
def test_a_graph_of_rows_refuses_a_head(profile: Profile) -> None:
    base = encoder_pack("bert")
    adapter = with_head(base, random_adapter(base))
    with pytest.raises(AdapterMismatchError, match="head of its own does not run on a graph of profile rows"):
        adapter_feeds(base, "rows", [None, adapter])
    tokens, mask = random_texts(base, LENGTHS)
    with pytest.raises(AdapterError, match=r"classifier|rows"):
        run_graph(None, base, profile, tokens, mask, [adapter] * len(tokens))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, place = encoder_pack("bert"), tmp_path_factory.mktemp("exported") / "model"
    for graph in export_base(base, place, profiles=["compat", "fast"]):
        assert graph.exact is not None
        assert graph.exact.keys() == {"base", "adapter", "adapter with a head"}
        assert max(graph.exact.values()) < 1e-5
    return place


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> BasePack:
    shutil.copytree(folder, tmp_path / "own")
    return open_pack(tmp_path / "own")


def as_before(base: BasePack, profile: Profile) -> Path:
    """The graph as it was exported before there were inputs for a head."""
    path = base.directory / graph_name(base.model, profile)
    ir.save(onnx_model(graph_of(base, profile, 4, takes_head=False), base.directory), path)
    write_graph_manifest(
        path, base_fingerprint=base.fingerprint, profile=profile, accuracy_level=4,
        inputs=graph_inputs(base.model, profile, takes_head=False),
    )  # fmt: skip
    return path


@pytest.mark.parametrize("profile", sorted(HEAD_PROFILES))
def test_a_graph_of_an_earlier_version_stays_valid_and_takes_no_head(own: BasePack, profile: Profile) -> None:
    new = read_checked_graph(own.directory / graph_name(own.model, profile), own, profile, 4).facts
    path = as_before(own, profile)
    manifest = check_graph_file(path, own)
    facts = read_checked_graph(path, own, profile, 4).facts
    assert facts.adapter_inputs == new.adapter_inputs - 4
    assert (facts.nodes, facts.external) == (new.nodes, new.external)
    manifest.check_takes(input_values(random_adapter(own)), "a", own.directory)
    if profile == "compat":
        with pytest.raises(AdapterMismatchError, match="it has a head of its own"):
            manifest.check_takes(input_values(with_head(own, random_adapter(own))), "a", own.directory)


def test_a_graph_that_takes_a_part_of_a_head_is_none_of_the_bases(own: BasePack) -> None:
    path = own.directory / graph_name(own.model, "compat")
    graph = graph_of(own, "compat", 4)
    some = tuple(signature for signature in graph.inputs if signature.name != "classifier.bias")
    ir.save(onnx_model(replace(graph, inputs=some), own.directory), path)
    with pytest.raises(GraphError, match=r"input 'classifier.bias' is missing"):
        read_checked_graph(path, own, "compat", 4)


@pytest.mark.parametrize("profile", sorted(HEAD_PROFILES))
@pytest.mark.parametrize("labels", [3, 5])
def test_a_file_carries_the_head_and_onnx_runtime_runs_it(own: BasePack, profile: Profile, labels: int) -> None:
    adapter, path = for_labels(own, labels), own.directory / "own.onnx_adapter"
    write_peft(own.directory.parent / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=own.fingerprint))
    export_peft(own.directory.parent / "adapter", path, own, profile=profile)
    file = load_adapter_file(
        path, base_fingerprint=own.fingerprint, inputs=graph_inputs(own.model, profile), profile=profile
    )
    for name, array in adapter.extras.items():
        np.testing.assert_array_equal(file.values[name], array)
    assert f"and a head of its own ({', '.join(adapter.extras)})" in verify_adapter(path, own).replace("'", "")
    tokens, mask = random_texts(own, LENGTHS)
    session = open_session(own.directory / graph_name(own.model, profile))
    loaded = ort.LoraAdapter()
    loaded.Load(str(path))
    options = ort.RunOptions()
    options.add_active_adapter(loaded)
    got = session.run(None, {"input_ids": tokens, "attention_mask": mask}, options)[0]
    np.testing.assert_array_equal(got, outputs(session, tokens, mask, dict(file.values)))
    assert got.shape == (len(tokens), labels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"classifier.bias": np.zeros(4, np.float32)},
            r"needs classifier\.weight and .*\.bias for one number of labels",
        ),
        (
            {"classifier.weight": np.zeros((3, 7), np.float32)},
            r"its classifier\.weight is \[3, 7\], the base's is \[-1, 64\]",
        ),
        ({"score.weight": np.zeros((3, 64), np.float32)}, r"score\.weight of its own, which is no head of the base"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_in_a_file_and_in_a_directory(
    own: BasePack, tmp_path: Path, change: dict[str, np.ndarray], words: str
) -> None:
    adapter = for_labels(own, 3)
    wrong = with_extras(adapter, {**adapter.extras, **change})
    write_peft(tmp_path / "adapter", PeftDirectory(adapter=wrong, base_fingerprint=own.fingerprint))
    with pytest.raises(AdapterMismatchError, match=words):
        export_peft(tmp_path / "adapter", tmp_path / "a.onnx_adapter", own)
    path = own.directory / "wrong.onnx_adapter"
    write_onnx_adapter(wrong, own.fingerprint, path)
    with pytest.raises(AdapterMismatchError, match=f"{words}|no adapter input score.weight"):
        verify_adapter(path, own)


def test_the_manifest_tells_the_head(own: BasePack) -> None:
    path = own.directory / "own.onnx_adapter"
    write_onnx_adapter(for_labels(own, 5), own.fingerprint, path)
    slots = json.loads(sidecar_of(path).read_text())["slots"]
    assert (slots["classifier.weight"], slots["classifier.bias"]) == ([5, 64], [5])


@pytest.mark.parametrize("name", ENCODERS)
def test_what_peft_trained_with_its_classifier_has_pefts_scores_in_the_graph(
    sessions: Sessions, name: str, tmp_path: Path
) -> None:
    base = encoder_pack(name)
    model, _ = peft_encoder(base, with_head(base, random_adapter(base)))
    model.save_pretrained(tmp_path / "peft")
    export_peft(tmp_path / "peft", tmp_path / "a.onnx_adapter", base)
    file = load_adapter_file(
        tmp_path / "a.onnx_adapter", base_fingerprint=base.fingerprint, inputs=graph_inputs(base.model, "compat")
    )
    tokens, mask = random_texts(base, LENGTHS)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask)).logits
    assert_close(outputs(sessions(name, "compat"), tokens, mask, dict(file.values)), expected)


def test_a_merged_base_has_the_adapters_head(tmp_path: Path) -> None:
    base = save_encoder_pack("bert", tmp_path / "pack", bits=8)
    adapter = with_head(base, random_adapter(base), ("classifier", "pooler"))
    _, cost = export_merged(base, adapter, tmp_path / "merged")
    merged = open_pack(tmp_path / "merged")
    for name, array in adapter.extras.items():
        np.testing.assert_array_equal(merged.floats(name), array)
    assert cost.merged < 0.2 * cost.adapter  # type: ignore[union-attr]
    with pytest.raises(AdapterMismatchError, match="is for a base with other labels"):
        export_merged(base, for_labels(base, 5), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_published_bert_classifier_is_exported_with_its_head(shared: Path, tmp_path: Path) -> None:
    source = shared / "fixtures" / "peft-bert-seqcls"
    export_peft_size = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 64}
    base = save_encoder_pack("bert", tmp_path / "pack", **export_peft_size)
    export_peft(source, tmp_path / "a.onnx_adapter", base)
    file = load_adapter_file(
        tmp_path / "a.onnx_adapter", base_fingerprint=base.fingerprint, inputs=graph_inputs(base.model, "compat")
    )
    for name, array in read_peft(source).adapter.extras.items():
        np.testing.assert_array_equal(file.values[name], array)
    assert len(file.values["classifier.bias"]) == 2 != len(shape_of(base).labels)
