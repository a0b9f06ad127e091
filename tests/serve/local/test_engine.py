from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError, GraphError, PackError
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora_client.reference import logits as torch_logits
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_export.export import export_base
from fedlora_export.merge import export_merged
from fedlora_serve.adapters.loading import LoadedAdapter, load_adapter
from fedlora_serve.local.engine import Engine

from tests.reference.agreement import assert_close
from tests.tiny.adapters import ALL_RANKS, LORAS, changed, random_adapter
from tests.tiny.llamas import VARIANTS, Packs, Variant, save_pack
from tests.tiny.tokens import random_tokens


def loaded(engine: Engine, path: Path, seed: int = 1, config: str = "one-rank") -> LoadedAdapter:
    write_onnx_adapter(random_adapter(engine.base, LORAS[config], seed), engine.base.fingerprint, path)
    return engine.load_adapter(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reading_token_by_token_equals_reading_all_at_once_and_torch(
    packs: Packs, tmp_path: Path, variant: str
) -> None:
    export_base(packs(VARIANTS[variant]), tmp_path / "model", accuracy_level=FLOAT_ACCURACY)
    engine = Engine(tmp_path / "model", threads=1)
    adapter = random_adapter(engine.base, LORAS["one-rank"])
    write_onnx_adapter(adapter, engine.base.fingerprint, tmp_path / "a")
    tokens = random_tokens(engine.base, 1, 11)
    row = tokens[0].tolist()
    for given, chosen in ((None, None), (adapter, engine.load_adapter(tmp_path / "a"))):
        expected = torch_logits(engine.base, tokens, given)[0]
        decoding = engine.start(chosen)
        for count, token in enumerate(row, 1):
            scores = decoding.step([token])
            assert decoding.length == count
            assert_close(scores, expected[count - 1])
            assert_close(engine.start(chosen).step(row[:count]), expected[count - 1])
        parts = engine.start(chosen)
        parts.step(row[:4])
        assert_close(parts.step(row[4:]), expected[-1])


def test_swapping_adapters_rebuilds_no_session_and_leaves_the_base_bit_for_bit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Any] = []
    original = ort.InferenceSession

    def counted(*arguments: Any, **options: Any) -> Any:
        sessions.append(original(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(ort, "InferenceSession", counted)
    engine = Engine(model, threads=1)
    tokens = random_tokens(engine.base, 1, 10)[0].tolist()
    before = engine.start().step(tokens)
    adapters = [loaded(engine, tmp_path / f"{n}", n, config) for n, config in enumerate(LORAS)]
    speaking = [engine.start(adapter).step(tokens) for adapter in adapters]
    for number, scores in enumerate(speaking):
        assert np.abs(scores - before).max() > 0.1
        assert not any(np.array_equal(scores, other) for other in speaking[:number])
    assert np.array_equal(engine.start().step(tokens), before)
    for adapter, scores in zip(adapters[::-1], speaking[::-1], strict=True):
        assert np.array_equal(engine.start(adapter).step(tokens), scores)
    assert len(sessions) == 1


def test_sequences_with_different_adapters_do_not_disturb_each_other(engine: Engine, tmp_path: Path) -> None:
    adapters = [None, loaded(engine, tmp_path / "1", 1), loaded(engine, tmp_path / "2", 2, "rslora")]
    rows = [random_tokens(engine.base, 1, 8, seed=n)[0].tolist() for n in range(3)]
    alone = []
    for adapter, row in zip(adapters, rows, strict=True):
        decoding = engine.start(adapter)
        alone.append([decoding.step([token]) for token in row])
    together = [engine.start(adapter) for adapter in adapters]
    for place in range(8):
        for decoding, row, expected in zip(together, rows, alone, strict=True):
            assert np.array_equal(decoding.step([row[place]]), expected[place])


def test_an_adapter_outlives_its_file_and_the_variable_that_held_it(engine: Engine, tmp_path: Path) -> None:
    adapter = random_adapter(engine.base, ALL_RANKS)
    write_onnx_adapter(adapter, engine.base.fingerprint, tmp_path / "a")
    decoding = engine.start(engine.load_adapter(tmp_path / "a"))
    (tmp_path / "a").unlink()
    tokens = random_tokens(engine.base, 1, 6)
    junk = [np.full((64, 64), 7.0, np.float32) for _ in range(200)]  # memory that was let go is used again
    expected = torch_logits(engine.base, tokens, adapter)[0]
    for token, scores in zip(tokens[0].tolist(), expected, strict=True):
        assert_close(decoding.step([token]), scores)
    assert len(junk) == 200


def test_the_context_is_used_to_its_end_and_no_further(engine: Engine) -> None:
    context = engine.base.shape.max_positions
    tokens = random_tokens(engine.base, 1, context)
    decoding = engine.start()
    decoding.step(tokens[0, :-1].tolist())
    scores = decoding.step([int(tokens[0, -1])])
    assert_close(scores, torch_logits(engine.base, tokens, None)[0, -1])
    with pytest.raises(ConfigError, match=r"^65 tokens are more than the base's context of 64; shorten the prompt$"):
        decoding.step([0])
    assert decoding.length == context


@pytest.mark.parametrize("tokens", [[], [-1], [258], [3, 999999]])
def test_tokens_that_the_base_lacks_are_refused(engine: Engine, tokens: list[int]) -> None:
    decoding = engine.start()
    with pytest.raises(ConfigError, match="expected token ids from 0 to 257"):
        decoding.step(tokens)
    assert decoding.length == 0


def test_the_logits_of_the_last_token_alone_are_computed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    original = ort.InferenceSession.run_with_ort_values

    def seen(*arguments: Any) -> Any:
        values = original(*arguments)
        shapes.append(values[0].shape())
        return values

    monkeypatch.setattr(ort.InferenceSession, "run_with_ort_values", seen)
    tokens = random_tokens(engine.base, 1, 9)
    decoding = engine.start()
    decoding.step(tokens[0, :8].tolist())
    assert_close(decoding.step(tokens[0, 8:].tolist()), torch_logits(engine.base, tokens, None)[0, -1])
    assert shapes == [[1, 1, engine.base.shape.vocab_size]] * 2


def test_scores_that_an_adapter_makes_infinite_are_refused_by_its_file(engine: Engine, tmp_path: Path) -> None:
    huge = changed(random_adapter(engine.base), lambda module, lora_A, lora_B: (lora_A * 1e15, lora_B * 1e15))
    write_onnx_adapter(huge, engine.base.fingerprint, tmp_path / "huge")
    decoding = engine.start(engine.load_adapter(tmp_path / "huge"))
    for _ in range(2):  # nothing of a refused step is kept
        with pytest.raises(
            AdapterError, match=r"huge: with it the scores of the next token are not finite: its values"
        ):
            decoding.step([1, 2, 3])
        assert decoding.length == 0


def test_what_onnx_runtime_refuses_to_run_is_an_error_of_the_graph(engine: Engine, tmp_path: Path) -> None:
    adapter = loaded(engine, tmp_path / "a")
    flat = np.zeros(3, np.float32)
    decoding = engine.start(replace(adapter, values=dict.fromkeys(adapter.inputs, flat)))
    with pytest.raises(GraphError, match=r"decoder\.onnx: ONNX Runtime does not run it: .*; export it again"):
        decoding.step([1])
    assert decoding.length == 0


def test_a_merged_base_speaks_and_takes_no_adapter(packs: Packs, tmp_path: Path) -> None:
    base = packs(VARIANTS["8-bit-symmetric-untied-mqa-head32"])
    graph, _ = export_merged(base, random_adapter(base), tmp_path / "merged", accuracy_level=FLOAT_ACCURACY)
    assert graph.path.name == "decoder.base.onnx"
    engine = Engine(tmp_path / "merged", threads=1)
    assert (engine.graph_manifest.profile, engine.base.fingerprint == base.fingerprint) == ("base", False)
    tokens = random_tokens(engine.base, 1, 7)
    assert_close(engine.start().step(tokens[0].tolist()), torch_logits(engine.base, tokens, None)[0, -1])
    write_onnx_adapter(random_adapter(base), base.fingerprint, tmp_path / "a")
    with pytest.raises(AdapterMismatchError, match=r"decoder\.base\.onnx is of profile base, which takes no adapter"):
        engine.load_adapter(tmp_path / "a")


def test_an_adapter_file_for_the_profile_fast_is_refused_by_name(engine: Engine, tmp_path: Path) -> None:
    base = engine.base
    write_onnx_adapter(random_adapter(base), base.fingerprint, tmp_path / "joined", joined_for=base.model)
    with pytest.raises(AdapterMismatchError, match=r"of profile fast, .*; expected profile compat: export the adapter"):
        engine.load_adapter(tmp_path / "joined")


def test_an_adapter_that_is_laid_out_for_another_graph_is_refused(engine: Engine, tmp_path: Path) -> None:
    write_onnx_adapter(random_adapter(engine.base), engine.base.fingerprint, tmp_path / "mine")
    laid_out = load_adapter(tmp_path / "mine", engine.base, layout="float32")
    with pytest.raises(AdapterMismatchError, match="mine: laid out for the graph kernel; this graph takes the values"):
        engine.start(laid_out)


def copied(model: Path, target: Path) -> Path:
    shutil.copytree(model, target)
    return target


def test_a_folder_without_a_graph_is_refused_with_the_command_that_writes_it(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    (folder / "decoder.onnx").unlink()
    with pytest.raises(GraphError, match=r"decoder\.onnx: no such file; write it with: fedlora export "):
        Engine(folder)


def test_a_graph_for_another_base_is_refused_with_both_fingerprints(model: Path, tmp_path: Path) -> None:
    other = save_pack(Variant(seed=8), tmp_path / "other")  # of the same shapes: ONNX Runtime would run it
    export_base(other)
    folder = copied(model, tmp_path / "model")
    for name in ("decoder.onnx", "decoder.onnx.json"):
        shutil.copyfile(other.directory / name, folder / name)
    with pytest.raises(GraphError) as caught:
        Engine(folder)
    assert f"made for base {other.fingerprint}" in str(caught.value)
    assert Engine(model).base.fingerprint in str(caught.value)
    assert "export it again" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_bit_in_the_pack_is_refused_by_its_file(model: Path, tmp_path: Path, name: str) -> None:
    folder = copied(model, tmp_path / "model")
    data = bytearray((folder / name).read_bytes())
    data[-len(data) // 3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(PackError, match=rf"{name}: sha256 is .*; the file is damaged: copy the pack again"):
        Engine(folder)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_damaged_graph_is_refused(model: Path, tmp_path: Path, keep: int) -> None:
    folder = copied(model, tmp_path / "model")
    graph = folder / "decoder.onnx"
    assert graph.stat().st_size > keep
    graph.write_bytes(graph.read_bytes()[:keep])
    with pytest.raises(GraphError, match=r"decoder\.onnx"):
        Engine(folder)


def test_a_folder_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="not a base pack"):
        Engine(tmp_path)
