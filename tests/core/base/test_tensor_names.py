"""Tensors under other names, and heads that contradict config.json: what transformers loads is what is packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fedlora.base.checkpoint import Checkpoint
from fedlora.base.pack import open_pack
from fedlora.base.packing import make_pack
from fedlora.errors import CheckpointError
from fedlora.family import DecoderShape
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    DistilBertModel,
    RobertaForSequenceClassification,
    RobertaModel,
)

from tests.tiny.checkpoints import tiny_quantization
from tests.tiny.decoders import save_decoder
from tests.tiny.encoders import save_encoder

Tensors = dict[str, torch.Tensor]
CLASSES = {
    "llama": AutoModelForCausalLM, "gemma3_text": AutoModelForCausalLM, "phi3": AutoModelForCausalLM,
    "bert": BertForSequenceClassification, "bare bert": BertModel, "roberta": RobertaForSequenceClassification,
    "bare roberta": RobertaModel, "distilbert": DistilBertForSequenceClassification, "bare distilbert": DistilBertModel,
}  # fmt: skip
PREFIXES = {"llama": "model.", "gemma3_text": "model.", "phi3": "model."}
_SMALL = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip


def _save(model: str, directory: Path, **changes: Any) -> Path:
    if "bert" in model:
        save_encoder(model, directory, **changes)
    else:
        save_decoder(AutoConfig.for_model(model, **{**_SMALL, **changes}), directory)
    return directory


def _rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = directory / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, {"format": "pt"})


def _reconfigure(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def _loaded(model: str, directory: Path) -> Tensors:
    """The tensors of the model as transformers loads it."""
    return dict(CLASSES[model].from_pretrained(directory, dtype=torch.float32).state_dict())


def _differences(directory: Path, expected: Tensors) -> list[str]:
    """The tensors that fedlora would pack otherwise than `expected`."""
    checkpoint = Checkpoint(directory)
    shape = checkpoint.shape
    matrices = shape.linear_modules() | shape.vocabulary_modules()
    sizes = {f"{module}.weight": dims for module, dims in matrices.items()} | shape.float_tensors()
    for name, size in sizes.items():
        checkpoint.check(name, size)
    return [
        name
        for name, size in sizes.items()
        if not np.array_equal(checkpoint.rows(name, 0, size[0]), expected[name].numpy())
    ]


def _with_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name if name.startswith(("classifier", "pre_classifier", "lm_head")) else f"{prefix}{name}": value
        for name, value in tensors.items()
    }


def _without_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.removeprefix(prefix): value for name, value in tensors.items()}


def _of_tensorflow(tensors: Tensors) -> Tensors:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Tensors]]:
    """(a checkpoint of a model, to be copied, and its tensors as transformers loads them)"""

    @cache
    def of(model: str) -> tuple[Path, Tensors]:
        directory = _save(model, tmp_path_factory.mktemp("saved") / "c")
        return directory, _loaded(model, directory)

    return of


@pytest.mark.parametrize("model", CLASSES)
@pytest.mark.parametrize("kind", ["as saved", "other prefix", "tensorflow", "both"])
def test_what_transformers_loads_is_what_is_packed(
    saved: Callable[[str], tuple[Path, Tensors]], tmp_path: Path, model: str, kind: str
) -> None:
    kept, original = saved(model)
    directory = Path(shutil.copytree(kept, tmp_path / "c"))
    prefix = PREFIXES.get(model, f"{model.removeprefix('bare ')}.")
    if kind in ("other prefix", "both"):
        _rewrite(directory, _with_prefix(prefix) if model.startswith("bare") else _without_prefix(prefix))
    if kind in ("tensorflow", "both"):
        _rewrite(directory, _of_tensorflow)
    loaded = original if kind == "as saved" else _loaded(model, directory)
    assert all(torch.equal(loaded[name], original[name]) for name in original), "transformers itself reads it otherwise"
    assert _differences(directory, loaded) == []


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("model", ["llama", "bare bert"])
def test_what_torch_puts_before_every_name_is_taken_off_and_told(tmp_path: Path, model: str, wrapper: str) -> None:
    directory = _save(model, tmp_path / "c")
    original = _loaded(model, directory)
    _rewrite(directory, lambda tensors: {f"{wrapper}{name}": value for name, value in tensors.items()})
    assert _differences(directory, original) == []
    (note,) = Checkpoint(directory).notes
    assert "taken off the names" in note


def test_a_layer_that_was_compiled_alone_is_found(tmp_path: Path) -> None:
    directory = _save("llama", tmp_path / "c")
    original = _loaded("llama", directory)
    _rewrite(directory, lambda tensors: {n.replace("layers.0.", "layers.0._orig_mod."): v for n, v in tensors.items()})
    assert _differences(directory, original) == []


def _other_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}


def _same_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def _one_number_differs(tensors: Tensors) -> Tensors:
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    return tensors | {"lm_head.weight": head}


def _head_alone(tensors: Tensors) -> Tensors:
    return {name.replace("model.embed_tokens", "lm_head"): value for name, value in tensors.items()}


HEADS: dict[str, tuple[Callable[[Tensors], Tensors], bool, str]] = {  # what the file holds, whether tied, what is told
    "none": (lambda tensors: tensors, True, ""),
    "another": (_other_head, False, "both are kept"),
    "another by one number": (_one_number_differs, False, "both are kept"),
    "the embedding": (_same_head, True, ""),
    "the head alone": (_head_alone, True, "it is both"),
}


@pytest.mark.parametrize("what", HEADS)
@pytest.mark.parametrize(("model", "dtype"), [("llama", torch.float32), ("gemma3_text", torch.bfloat16)])
def test_a_tied_head_beside_one_in_the_file_is_what_transformers_makes_of_it(
    tmp_path: Path, model: str, what: str, dtype: torch.dtype
) -> None:
    directory = _save(model, tmp_path / "c", tie_word_embeddings=True)
    change, tied, told = HEADS[what]
    _rewrite(directory, lambda tensors: change({name: value.to(dtype) for name, value in tensors.items()}))
    checkpoint, notes = Checkpoint(directory), list[str]()
    assert isinstance(checkpoint.shape, DecoderShape)
    assert checkpoint.shape.tie_word_embeddings == tied
    assert _differences(directory, _loaded(model, directory)) == []
    make_pack(directory, tmp_path / "pack", tiny_quantization(), tell=notes.append)
    assert open_pack(tmp_path / "pack").shape.tie_word_embeddings == checkpoint.shape.tie_word_embeddings
    assert [told in note for note in notes] == [True] * len(checkpoint.notes)


def test_no_head_where_config_json_ties_none_is_refused_because_transformers_would_invent_one(tmp_path: Path) -> None:
    directory = _save("llama", tmp_path / "c", tie_word_embeddings=True)
    _reconfigure(directory, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing; .* set tie_word_embeddings to true"):
        make_pack(directory, tmp_path / "pack", tiny_quantization())


MISSING: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a prefix that nobody knows": (
        lambda tensors: {f"backbone.{name}": value for name, value in tensors.items()}, "the weights have backbone.model.",
    ),
    "an adapter inside": (
        lambda tensors: {n.replace("q_proj", "q_proj.base_layer"): v for n, v in tensors.items()}, "merge_and_unload",
    ),
    "of another model": (lambda tensors: {"wte.weight": torch.zeros(3, 3)}, "the weights hold wte.weight"),
    "nothing": (lambda tensors: {}, "the weights hold no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISSING)
def test_of_a_tensor_that_is_missing_it_is_said_what_is_there_instead(tmp_path: Path, what: str) -> None:
    directory = _save("llama", tmp_path / "c", tie_word_embeddings=True)
    change, told = MISSING[what]
    _rewrite(directory, change)
    with pytest.raises(CheckpointError) as caught:
        make_pack(directory, tmp_path / "pack", tiny_quantization())
    assert told in str(caught.value)
    assert "is missing" in str(caught.value)
