from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError, GraphError, PackError
from fedlora.exported.inputs import input_values
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter
from fedlora.row_lora.layout import adapter_layout
from fedlora_client.reference import logits as torch_scores
from fedlora_export.export import export_base
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.embedding import Embedder
from fedlora_serve.text_encoder import batches_by_length
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import BARE, encoder_pack
from tests.tiny.llamas import DEFAULT, save_pack
from tests.tiny.tokenizer import BOS, EOS
from tests.tiny.tokens import random_texts

LENGTHS = (9, 17, 2, 1, 30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one encoder with its graph: for reading, it is shared."""
    folder = tmp_path_factory.mktemp("served") / "encoder"
    export_base(encoder_pack("bare bert"), folder, accuracy_level=FLOAT_ACCURACY)
    return folder


@pytest.fixture(scope="module")
def embedder(served: Path) -> Embedder:
    return Embedder(served, threads=1)


def version(adapter: Adapter) -> LoadedAdapter:
    return version_of(input_values(adapter))


def version_of(values: Mapping[str, NDArray[np.float32]]) -> LoadedAdapter:
    return LoadedAdapter(name="mine", digest="d", number=1, values=values, rank=4, size_bytes=1, source=Path("here"))


def rows_of(tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> list[list[int]]:
    return [row[: length.sum()].tolist() for row, length in zip(tokens, mask, strict=True)]


def counted(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the batches that are run from now on."""
    sizes: list[tuple[int, int]] = []
    session = embedder._session

    class Counted:
        def run(self, names: list[str], feeds: dict[str, Any], options: Any) -> Any:
            sizes.append(feeds["input_ids"].shape)
            return session.run(names, feeds, options)

    monkeypatch.setattr(embedder, "_session", Counted())
    return sizes


@pytest.mark.parametrize("name", BARE)
def test_embeddings_of_every_encoder_agree_with_torch_with_an_adapter_and_without(tmp_path: Path, name: str) -> None:
    export_base(encoder_pack(name), tmp_path / "model", accuracy_level=FLOAT_ACCURACY)
    embedder = Embedder(tmp_path / "model", threads=1)
    tokens, mask = random_texts(embedder.base, LENGTHS)
    for adapter in (None, random_adapter(embedder.base)):
        got = embedder.embed(rows_of(tokens, mask), version(adapter) if adapter else None)
        assert got.dtype == np.float32
        assert_close(got, torch_scores(embedder.base, tokens, adapter, mask))
    # The mean over each text of transformers' own last states.
    with torch.no_grad():
        states = oracle(embedder.base)(torch.from_numpy(tokens), torch.from_numpy(mask))[0].numpy()
    expected = [row[:length].mean(0) for row, length in zip(states, LENGTHS, strict=True)]
    assert_close(embedder.embed(rows_of(tokens, mask)), np.stack(expected))


def test_a_text_has_one_embedding_whatever_stands_beside_it(embedder: Embedder) -> None:
    rows = rows_of(*random_texts(embedder.base, LENGTHS))
    together = embedder.embed(rows)
    assert_close(embedder.embed(rows[::-1])[::-1], together)
    for row, expected in zip(rows, together, strict=True):
        assert_close(embedder.embed([row])[0], expected)


def test_one_long_text_among_short_ones_is_computed_apart(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(served, threads=1, max_tokens=64)
    rows = rows_of(*random_texts(embedder.base, (3,) * 20 + (40,) + (2,) * 20))
    expected = embedder.embed(rows)
    sizes = counted(embedder, monkeypatch)
    assert np.array_equal(embedder.embed(rows), expected)
    assert sizes == [(21, 3), (19, 3), (1, 40)]
    assert_close(embedder.embed([rows[20]])[0], expected[20])


@given(lengths=st.lists(st.integers(1, 50), max_size=40), limit=st.integers(1, 200))
def test_every_text_is_in_one_batch_and_none_is_padded_beyond_the_limit(lengths: list[int], limit: int) -> None:
    batches = list(batches_by_length(lengths, limit))
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= limit


def test_no_texts_have_no_embeddings(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.hidden_size)


def test_the_tokens_of_a_text_stand_among_the_tokenizers_own(embedder: Embedder) -> None:
    assert embedder.tokens("a") == [BOS, *embedder.tokenizer.encode("a", add_special_tokens=False).ids, EOS]
    with pytest.raises(ConfigError, match="the text is not UTF-8 text"):
        embedder.tokens("\ud800")


@pytest.mark.parametrize("length", [0, 41])
def test_a_text_that_is_empty_or_too_long_is_refused_by_its_number(embedder: Embedder, length: int) -> None:
    with pytest.raises(ConfigError) as caught:
        embedder.embed([[5], [5] * length])
    assert str(caught.value) == f"text 1: {length} tokens; the base takes 1 to 40: shorten the text or divide it"
    assert embedder.max_tokens == 40


@pytest.mark.parametrize("token", [-1, 260])
def test_a_token_that_the_base_lacks_is_refused(embedder: Embedder, token: int) -> None:
    with pytest.raises(ConfigError, match="text 0: expected token ids from 0 to 259"):
        embedder.embed([[1, token]])


def test_an_embedding_that_is_not_finite_is_refused_by_the_adapters_name(embedder: Embedder) -> None:
    values = input_values(random_adapter(embedder.base))
    huge = version_of({name: value * np.float32(1e18) for name, value in values.items()})
    with pytest.raises(AdapterError, match=r"^mine \(here\): with it an embedding is not finite"):
        embedder.embed([[1, 2]], huge)
    assert np.isfinite(embedder.embed([[1, 2]])).all()


def test_what_onnx_runtime_refuses_to_run_is_an_error_of_the_graph(embedder: Embedder) -> None:
    flat = version_of(dict.fromkeys(input_values(random_adapter(embedder.base)), np.zeros(3, np.float32)))
    with pytest.raises(GraphError, match=r"encoder\.onnx: ONNX Runtime does not run it: .*; export it again"):
        embedder.embed([[1]], flat)


def test_a_graph_without_adapter_inputs_takes_no_adapter(tmp_path: Path) -> None:
    base = encoder_pack("bare distilbert")
    export_base(base, tmp_path / "model", profiles=("base",), accuracy_level=FLOAT_ACCURACY)
    embedder = Embedder(tmp_path / "model", threads=1)
    assert_close(
        embedder.embed([[5, 6, 7]]), torch_scores(base, np.array([[5, 6, 7]]), None, np.ones((1, 3), np.int64))
    )
    with pytest.raises(AdapterMismatchError, match=r"encoder\.base\.onnx is of profile base, which takes no adapter"):
        embedder.embed([[5]], version(random_adapter(base)))


def test_an_adapter_that_is_laid_out_for_another_graph_is_refused(embedder: Embedder) -> None:
    adapter = random_adapter(embedder.base)
    layout = adapter_layout(input_values(adapter), embedder.base.model.linear_modules())
    with pytest.raises(AdapterMismatchError, match="mine: laid out for the graph kernel; this graph takes"):
        embedder.embed([[5]], replace(version(adapter), values=layout))


def test_an_encoder_with_a_classification_head_is_refused_with_what_to_pack() -> None:
    base: BasePack = encoder_pack("bert")
    with pytest.raises(
        PackError, match=r"scores of 3 labels; for embeddings pack one without: BertModel, RobertaModel"
    ):
        Embedder(base.directory)


def test_a_decoder_is_refused_with_what_to_pack(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"a decoder \(llama\), which generates text; for embeddings pack an encoder"):
        Embedder(save_pack(DEFAULT, tmp_path / "pack").directory)


def test_a_graph_that_is_missing_or_damaged_is_refused(served: Path, tmp_path: Path) -> None:
    shutil.copytree(served, tmp_path / "model")
    graph = tmp_path / "model" / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(GraphError, match=r"encoder\.onnx: sha256 is .*; export it again"):
        Embedder(tmp_path / "model")
    graph.unlink()
    with pytest.raises(GraphError, match=r"encoder\.onnx: no such file; write it with: fedlora export "):
        Embedder(tmp_path / "model")
