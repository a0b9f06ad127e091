"""What sentence-transformers says of an encoder is what is served: its documented steps, written out over transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.errors import PackError
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora_client.reference import logits as torch_scores
from fedlora_export.checks.verify import verify_folder
from fedlora_export.export import export_base
from fedlora_serve.embedding import Embedder
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.open_service import open_service
from numpy.typing import NDArray

from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle
from tests.serve.http.services import Client
from tests.tiny.encoders import encoder_pack
from tests.tiny.packs import checkpoint_of
from tests.tiny.sentences import write_modules
from tests.tiny.tokenizer import BOS, EOS
from tests.tiny.tokens import random_texts

Floats = NDArray[np.float32]
LENGTHS = (9, 2, 1, 17)
QUANTIZATION = Quantization(bits=4, embedding_bits=8, block_size=32, symmetric=True)  # as `encoder_pack`


def _served(folder: Path, name: str, **modules: Any) -> Embedder:
    """The encoder `name` with the modules of sentence-transformers beside it, packed and exported."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    for path in checkpoint_of(encoder_pack(name).directory).iterdir():
        (checkpoint / path.name).symlink_to(path)
    write_modules(checkpoint, **modules)
    make_pack(checkpoint, folder / "pack", QUANTIZATION)
    export_base(open_pack(folder / "pack"), folder / "served", accuracy_level=FLOAT_ACCURACY)
    return Embedder(folder / "served", threads=1)


def _states(base: BasePack, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = oracle(base)(torch.from_numpy(tokens), torch.from_numpy(mask))[0]
    return states


def _pooled(pooling: str, states: torch.Tensor) -> torch.Tensor:
    """The vector of one text from its own states [T, H]: the sentences of sentence-transformers' documentation."""
    length = len(states)
    places = torch.arange(1, length + 1)[:, None]
    vectors: dict[str, torch.Tensor] = {
        "mean": states.sum(0) / length, "cls": states[0], "max": states.max(0).values, "lasttoken": states[-1],
        "mean_sqrt_len_tokens": states.sum(0) / length**0.5, "weightedmean": (places * states).sum(0) / places.sum(),
    }  # fmt: skip
    return vectors[pooling]


@pytest.mark.parametrize("name", ["bare bert", "bare roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_every_pooling_is_computed_from_the_states_of_transformers(tmp_path: Path, name: str, pooling: str) -> None:
    embedder = _served(tmp_path, name, pooling={"pooling_mode": pooling})
    tokens, mask = random_texts(embedder.base, LENGTHS)
    states = _states(encoder_pack(name), tokens, mask)
    expected = torch.stack([_pooled(pooling, row[:length]) for row, length in zip(states, LENGTHS, strict=True)])
    rows = [row[:length].tolist() for row, length in zip(tokens, LENGTHS, strict=True)]
    assert_close(embedder.embed(rows), expected.numpy())
    assert_close(torch_scores(embedder.base, tokens, None, mask), expected.numpy())
    assert len(list(verify_folder(tmp_path / "served"))) > 1


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["linear.Identity", "activation.Tanh", "activation.ReLU", "activation.GELU"])
def test_dense_layers_follow_the_pooling(tmp_path: Path, activation: str, biased: bool) -> None:
    layers = [(64, 96, f"torch.nn.modules.{activation}", biased), (96, 8, "torch.nn.modules.linear.Identity", True)]
    embedder = _served(tmp_path, "bare bert", dense=layers, normalize=False)
    base = embedder.base
    tokens, mask = random_texts(base, LENGTHS)
    states = _states(encoder_pack("bare bert"), tokens, mask)
    vectors = torch.stack([row[:length].mean(0) for row, length in zip(states, LENGTHS, strict=True)])
    for number, (columns, rows, _, has_bias) in enumerate(layers):
        linear = torch.nn.Linear(columns, rows, bias=has_bias)
        state = {"weight": torch.from_numpy(base.floats(f"dense.{number}.weight"))}
        state |= {"bias": torch.from_numpy(base.floats(f"dense.{number}.bias"))} if has_bias else {}
        linear.load_state_dict(state)
        steps = [linear, getattr(torch.nn, activation.split(".")[1])() if number == 0 else torch.nn.Identity()]
        with torch.no_grad():
            vectors = torch.nn.Sequential(*steps)(vectors)
    rows_of = [row[:length].tolist() for row, length in zip(tokens, LENGTHS, strict=True)]
    assert embedder.hidden_size == 8
    assert_close(embedder.embed(rows_of), vectors.numpy())
    assert_close(torch_scores(base, tokens, None, mask), vectors.numpy())


def test_a_text_is_prepared_as_the_checkpoint_says(tmp_path: Path) -> None:
    embedder = _served(
        tmp_path, "bare bert", transformer={"max_seq_length": 10, "do_lower_case": True},
        sentences={"prompts": {"q": "Q: "}, "default_prompt_name": "q"},
    )  # fmt: skip
    plain = embedder.tokenizer
    assert embedder.max_tokens == 10
    assert embedder.tokens("  Ab\n") == [BOS, *plain.encode("q:   ab", add_special_tokens=False).ids, EOS]
    cut = embedder.tokens("A" * 50)
    assert cut == [BOS, *plain.encode("q: aaaaa", add_special_tokens=False).ids, EOS]
    assert embedder.embed([cut]).shape == (1, 64)


def test_without_the_files_a_text_is_taken_as_it_is_and_never_cut(tmp_path: Path) -> None:
    export_base(encoder_pack("bare bert"), tmp_path / "served", accuracy_level=FLOAT_ACCURACY)
    embedder = Embedder(tmp_path / "served", threads=1)
    assert embedder.normalized
    assert len(embedder.tokens(" A " * 50)) == 152


@pytest.mark.parametrize("normalize", [True, False])
def test_a_vector_has_length_one_where_the_checkpoint_normalizes(tmp_path: Path, normalize: bool) -> None:
    embedder = _served(tmp_path, "bare bert", normalize=normalize, transformer={"max_seq_length": 8})
    service = open_service(tmp_path / "served", ServeConfig(threads=1))
    body = {"model": service.base_name, "input": ["a text that is far too long", "short"]}
    answer = Client(service).post("/v1/embeddings", body).json()
    raw = embedder.embed([embedder.tokens(text) for text in ("a text that is far too long", "short")])
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True) if normalize else raw
    assert_close(np.array([one["embedding"] for one in answer["data"]], np.float32), expected)
    assert answer["usage"]["prompt_tokens"] == 8 + 7


def test_a_length_with_no_room_beside_the_special_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="texts are cut to 2 tokens, and 2 of them are the tokenizer's own"):
        _served(tmp_path, "bare bert", transformer={"max_seq_length": 2})
