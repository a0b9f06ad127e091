"""modules.json of sentence-transformers: what a pack takes from it, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.checkpoint import Checkpoint
from fedlora.base.pack import manifest_text, open_pack, read_manifest
from fedlora.base.packing import make_pack
from fedlora.errors import CheckpointError, PackError
from fedlora.family import EncoderShape
from fedlora.family.text_embedding import DenseLayer, TextEmbedding
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny.checkpoints import tiny_quantization, write_checkpoint
from tests.tiny.encoders import save_encoder
from tests.tiny.sentences import write_modules

SWITCHES = {
    "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens", "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last_token": "pooling_mode_lasttoken",
}  # fmt: skip
NAMES = {
    "cls": "cls", "mean": "mean", "max": "max", "mean_sqrt_len": "mean_sqrt_len_tokens", "weighted_mean": "weightedmean",
    "last_token": "lasttoken",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder") / "bert"
    save_encoder("bare bert", directory)
    return directory


@pytest.fixture
def directory(tmp_path: Path, plain: Path) -> Path:
    """A bare encoder of the test's own: the weights are linked."""
    copy = tmp_path / "sentences"
    copy.mkdir()
    for path in plain.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def _steps(directory: Path) -> TextEmbedding:
    shape = Checkpoint(directory).shape
    assert isinstance(shape, EncoderShape)
    return shape.embedding


@pytest.mark.parametrize("pooling", SWITCHES)
def test_the_pooling_is_that_of_its_switch_or_of_its_name(directory: Path, pooling: str) -> None:
    switches = {key: key == SWITCHES[pooling] for key in SWITCHES.values()}
    for config in (switches, {"pooling_mode": NAMES[pooling]}, {"pooling_mode": [NAMES[pooling]]}):
        write_modules(directory, pooling=config)
        assert _steps(directory).pooling == pooling


def test_a_pooling_without_a_word_is_the_mean(directory: Path) -> None:
    write_modules(directory, pooling={"word_embedding_dimension": 64})
    assert _steps(directory).pooling == "mean"


def test_lengths_case_prompt_and_normalization_are_read_and_kept_in_the_pack(directory: Path, tmp_path: Path) -> None:
    write_modules(
        directory, pooling={"pooling_mode": "cls"}, transformer={"max_seq_length": 12, "do_lower_case": True},
        sentences={"prompts": {"query": "find: ", "document": ""}, "default_prompt_name": "query"},
        dense=[(64, 16, "torch.nn.modules.activation.Tanh", True)], normalize=False,
    )  # fmt: skip
    expected = TextEmbedding(
        pooling="cls", max_tokens=12, strips=True, lower_case=True, prompt="find: ", normalized=False,
        dense=(DenseLayer(in_features=64, out_features=16, biased=True, activation="tanh"),),
    )  # fmt: skip
    make_pack(directory, tmp_path / "pack", tiny_quantization())
    pack = open_pack(tmp_path / "pack")
    assert isinstance(pack.model, EncoderShape)
    assert pack.model.embedding == _steps(directory) == expected
    assert pack.model.embedding_size == 16
    checkpoint = Checkpoint(directory)
    for tensor, size in {"dense.0.weight": (16, 64), "dense.0.bias": (16,)}.items():
        assert np.array_equal(pack.floats(tensor), checkpoint.rows(tensor, 0, size[0]))
    assert "embedding.json" in read_manifest(tmp_path / "pack")["files"]


def test_an_encoder_without_such_files_packs_to_the_base_that_it_always_was(directory: Path, tmp_path: Path) -> None:
    make_pack(directory, tmp_path / "pack", tiny_quantization())
    assert "embedding.json" not in read_manifest(tmp_path / "pack")["files"]
    model = open_pack(tmp_path / "pack").model
    assert isinstance(model, EncoderShape)
    assert model.embedding == TextEmbedding()


@pytest.mark.parametrize(
    ("told", "length"),
    [({"model_max_length": 20}, 20), ({"model_max_length": 10**30}, 40), ({"model_max_length": 512}, 40), ({}, 40)],
)
def test_a_length_that_is_not_told_is_that_of_the_tokenizer_or_of_the_model(
    directory: Path, told: dict[str, Any], length: int
) -> None:
    write_modules(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    assert _steps(directory).max_tokens == length


def test_a_length_beyond_the_model_is_told(directory: Path) -> None:
    write_modules(directory, transformer={"max_seq_length": 4096})
    assert _steps(directory).max_tokens == 40
    assert "max_seq_length is 4096" in Checkpoint(directory).notes[0]


def test_prompts_that_a_caller_has_to_name_are_told(directory: Path) -> None:
    write_modules(directory, sentences={"prompts": {"query": "find: "}, "default_prompt_name": None})
    assert _steps(directory).prompt == ""
    assert "query 'find: '" in Checkpoint(directory).notes[0]


def test_the_transformer_may_lie_in_a_folder_of_its_own(directory: Path, tmp_path: Path) -> None:
    root = tmp_path / "old"
    root.mkdir()
    write_modules(root, pooling={"pooling_mode": "cls"}, folder="0_Transformer")
    directory.rename(root / "0_Transformer")
    (root / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    with pytest.raises(CheckpointError, match=f"pass {root / '0_Transformer'}"):
        Checkpoint(root)
    assert (_steps(root / "0_Transformer").pooling, _steps(root / "0_Transformer").max_tokens) == ("cls", 9)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two poolings": ({"pooling": {"pooling_mode": ["cls", "mean"]}}, "cls and mean pooling at once"),
    "no pooling": ({"pooling": {"pooling_mode_mean_tokens": False}}, "no pooling at once"),
    "a pooling that nobody knows": ({"pooling": {"pooling_mode": "attention"}}, "the pooling 'attention'"),
    "a switch that nobody knows": (
        {"pooling": {"pooling_mode_mean_tokens": False, "pooling_mode_median": True}}, "'pooling_mode_median'",
    ),
    "no pooling module": ({"kinds": ["Transformer"]}, "the steps Transformer;"),
    "a CNN": ({"kinds": ["Transformer", "CNN", "Pooling"]}, "the step 'CNN'"),
    "bag of words": ({"kinds": ["BoW"]}, "the step 'BoW'"),
    "normalized first": ({"kinds": ["Transformer", "Normalize", "Pooling"]}, "the steps Transformer, Normalize, Pooling"),
    "an activation that nobody knows": ({"dense": [(64, 8, "torch.nn.Mish", True)]}, "the activation 'Mish'"),
    "a dense layer of another size": ({"dense": [(32, 8, "torch.nn.Tanh", True)]}, "takes 32 numbers, and gets 64"),
    "a prompt that is not pooled": (
        {
            "pooling": {"include_prompt": False},
            "sentences": {"prompts": {"q": "find: "}, "default_prompt_name": "q"},
        },
        "include_prompt",
    ),
    "a default prompt that is not there": ({"sentences": {"default_prompt_name": "q"}}, "not among the prompts"),
    "a length that is none": ({"transformer": {"max_seq_length": "long"}}, "max_seq_length"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(directory: Path, tmp_path: Path, what: str) -> None:
    modules, message = REFUSED[what]
    write_modules(directory, **modules)
    with pytest.raises(CheckpointError) as caught:
        make_pack(directory, tmp_path / "pack", tiny_quantization())
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)
    assert not (tmp_path / "pack").exists()


SWITCHED: dict[str, dict[str, Any]] = {
    "pooling_mode_mean_tokens": {"pooling": {"pooling_mode_mean_tokens": "WRONG"}},
    "pooling_mode_cls_token": {"pooling": {"pooling_mode_cls_token": "WRONG"}},
    "pooling_mode_median": {"pooling": {"pooling_mode_median": "WRONG"}},
    "include_prompt": {
        "pooling": {"include_prompt": "WRONG"}, "sentences": {"prompts": {"q": "x: "}, "default_prompt_name": "q"},
    },
    "do_lower_case": {"transformer": {"do_lower_case": "WRONG"}},
    "bias": {"dense": [(64, 8, "torch.nn.Tanh", "WRONG")]},
}  # fmt: skip


@pytest.mark.parametrize("wrong", ['"false"', "0", "1", "[]", "0.0"])
@pytest.mark.parametrize("key", SWITCHED)
def test_a_switch_that_is_neither_true_nor_false_is_refused(directory: Path, key: str, wrong: str) -> None:
    write_modules(directory, **SWITCHED[key])
    for file in directory.rglob("*.json"):
        if not file.is_symlink():
            file.write_text(file.read_text().replace('"WRONG"', wrong))
    with pytest.raises(CheckpointError, match=f"{key}: a switch must be true or false, got "):
        Checkpoint(directory)


def test_a_switch_that_is_null_is_as_one_that_is_not_there(directory: Path) -> None:
    write_modules(
        directory, pooling=dict.fromkeys(SWITCHES.values()) | {"pooling_mode_cls_token": True},
        transformer={"do_lower_case": None},
    )  # fmt: skip
    assert (_steps(directory).pooling, _steps(directory).lower_case) == ("cls", False)


@pytest.mark.parametrize("changes", [{"biased": 1}, {"biased": "true"}, {"in_features": "8"}, {"out_features": 8.5}])
def test_a_dense_layer_of_a_pack_has_values_of_its_types(changes: dict[str, Any]) -> None:
    layer = {"in_features": 8, "out_features": 8, "biased": True, "activation": "tanh"}
    with pytest.raises((TypeError, ValueError), match="must be"):
        TextEmbedding.from_object({"dense": [layer | changes]})


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "[3]", '[{"type": "x.Transformer", "path": "../.."}]', "[" * 99_999]
)
def test_a_list_of_modules_that_is_none_is_refused_by_its_file(directory: Path, content: str) -> None:
    (directory / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules.json: "):
        Checkpoint(directory)


def test_a_dense_layer_without_safetensors_is_refused_with_how_to_save_it(directory: Path) -> None:
    write_modules(directory, dense=[(64, 8, "torch.nn.Tanh", True)])
    (directory / "2_Dense" / "model.safetensors").rename(directory / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"2_Dense/model.safetensors: no such file.*\.save\(OTHER\)"):
        Checkpoint(directory)


@pytest.mark.parametrize("size", ["1e999", "-1e999", "NaN", '"eight"', "[8]", "null"])
def test_a_dense_layer_whose_size_is_no_number_is_refused(directory: Path, size: str) -> None:
    write_modules(directory, dense=[(64, 8, "torch.nn.Tanh", True)])
    config = directory / "2_Dense" / "config.json"
    config.write_text(config.read_text().replace('"out_features": 8', f'"out_features": {size}'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="2_Dense: not a sound Dense"):
        Checkpoint(directory)


def test_a_decoder_with_modules_is_packed_and_it_is_told_that_it_gives_no_embeddings(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "decoder")
    write_modules(directory, pooling={"pooling_mode": "lasttoken"})
    (note,) = Checkpoint(directory).notes
    assert "gives no embeddings" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "median"},
        {"max_tokens": 41},
        {"max_tokens": "9"},
        {"dense": [{}]},
        {"dense": 3},
        {"speed": 1},
        {"prompt": 1},
    ],
)
def test_a_pack_whose_steps_make_no_sense_is_refused(directory: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    write_modules(directory, pooling={"pooling_mode": "cls"})
    make_pack(directory, tmp_path / "pack", tiny_quantization())
    steps, manifest = tmp_path / "pack" / "embedding.json", tmp_path / "pack" / "base.json"
    steps.write_text(json.dumps(json.loads(steps.read_text()) | changes))
    manifest.unlink()
    text = manifest_text("x", tiny_quantization(), "mse", tmp_path / "pack")
    manifest.write_text(text)
    with pytest.raises(PackError, match="not a sound base pack"):
        open_pack(tmp_path / "pack")


@given(
    steps=st.builds(
        TextEmbedding, pooling=st.sampled_from(list(SWITCHES)), max_tokens=st.integers(0, 40), cut_left=st.booleans(),
        strips=st.booleans(), lower_case=st.booleans(), prompt=st.text(max_size=20), normalized=st.booleans(),
    )
)  # fmt: skip
def test_steps_that_are_written_are_read_back(steps: TextEmbedding) -> None:
    assert TextEmbedding.from_object(json.loads(json.dumps(steps.to_object()))) == steps
