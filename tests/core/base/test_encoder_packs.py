"""Encoders: what their config.json says, what is packed of a checkpoint, and what is shown of a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.base.checkpoint import Checkpoint
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.commands.inspect import inspect
from fedlora.data.datasets import split_records
from fedlora.data.examples import Example, Labelled, TextRecord, size_bytes, text_of
from fedlora.errors import CheckpointError, DataError, PackError
from fedlora.family import EncoderShape, ModelShape, decoder_shape, model_shape

from tests.tiny.encoders import EVERY, LABELS, encoder_pack, shape_of

_BERT: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 40,
}  # fmt: skip
_DISTILBERT: dict[str, Any] = {
    "architectures": ["DistilBertModel"], "model_type": "distilbert", "dim": 64, "hidden_dim": 96, "n_layers": 2,
    "n_heads": 4, "vocab_size": 100, "max_position_embeddings": 40,
}  # fmt: skip


def shape(config: dict[str, Any], **changes: Any) -> EncoderShape:
    found: ModelShape = model_shape({**config, **changes}, "dir/config.json")
    assert isinstance(found, EncoderShape)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_a_pack_holds_every_weight_that_the_model_uses(name: str) -> None:
    base = encoder_pack(name)
    model, checkpoint = shape_of(base), Checkpoint(base.directory.with_name("pack-checkpoint"))
    assert model.labels == (() if name.startswith("bare") else LABELS)
    for tensor, size in model.float_tensors().items():
        assert np.array_equal(base.floats(tensor), checkpoint.rows(tensor, 0, size[0]))
    for module, (rows, columns) in (model.linear_modules() | model.vocabulary_modules()).items():
        weight = checkpoint.rows(f"{module}.weight", 0, rows)
        assert weight.shape == (rows, columns)
        difference = dequantize(base.matrix(module)) - weight
        assert np.abs(difference).mean() < 0.15 * np.abs(weight).mean(), module


def test_the_modules_of_an_encoder_have_the_names_of_its_checkpoint() -> None:
    bert = shape(_BERT).linear_modules()
    assert len(bert) == 12
    assert bert["bert.encoder.layer.1.attention.self.query"] == (64, 64)
    assert bert["bert.encoder.layer.0.intermediate.dense"] == (96, 64)
    assert bert["bert.encoder.layer.0.output.dense"] == (64, 96)
    assert shape(_DISTILBERT).linear_modules()["transformer.layer.1.ffn.lin2"] == (64, 96)


def test_roberta_counts_its_positions_from_after_the_paddings() -> None:
    roberta = {**_BERT, "architectures": ["RobertaModel"], "model_type": "roberta"}
    for changes, first in (({}, 2), ({"pad_token_id": None}, 2), ({"pad_token_id": 1}, 2), ({"pad_token_id": 4}, 5)):
        got = shape(roberta, **changes)
        assert (got.first_position, got.max_positions) == (first, 40 - first)
    assert (shape(_BERT, pad_token_id=3).first_position, shape(_BERT, pad_token_id=3).max_positions) == (0, 40)


def test_distilberts_norms_have_an_epsilon_of_their_own_and_no_types() -> None:
    got = shape(_DISTILBERT, layer_norm_eps=0.1, type_vocab_size=2)
    assert (got.layer_norm_eps, got.type_vocab_size) == (1e-12, 0)
    assert shape(_BERT, layer_norm_eps=1e-5).layer_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "architecture BertForMaskedLM is not supported"),
        ({"hidden_size": "wide"}, "config.json of BertForSequenceClassification"),
        ({"num_attention_heads": 5}, "a hidden size (64) that is a multiple of the heads (5)"),
        ({"num_hidden_layers": 0}, "num_layers 0"),
        ({"hidden_act": "relu"}, "activation is 'relu'; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
        ({"id2label": {0: "one"}}, "id2label must name two or more classes"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label must name two or more classes"),
        ({"id2label": ["a", "b"]}, "id2label must be an object"),
        ({"num_labels": 1}, "id2label must name two or more classes"),
        ({"pad_token_id": 100}, "pad_token_id must be from 0 to 99, got 100"),
        ({"pad_token_id": -1}, "pad_token_id must be from 0 to 99, got -1"),
    ],
)
def test_a_config_of_another_encoder_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        model_shape({**_BERT, **changes}, "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert message in str(caught.value)


def test_labels_that_are_not_named_have_transformers_default_names() -> None:
    assert shape(_BERT).labels == ("LABEL_0", "LABEL_1")
    assert shape(_BERT, id2label={"1": "b", "0": "a", "2": "c"}).labels == ("a", "b", "c")


def test_who_needs_a_decoder_refuses_an_encoder() -> None:
    base: BasePack = encoder_pack("bert")
    with pytest.raises(PackError, match=r"an encoder \(bert\); this needs a model that generates"):
        _ = base.shape
    with pytest.raises(CheckpointError, match="BertForSequenceClassification is an encoder"):
        decoder_shape(_BERT, "here")


def shown(path: Path) -> dict[str, str]:
    lines = CliRunner().invoke(inspect, [str(path)], catch_exceptions=False).output.splitlines()[1:]
    return {line[2:24].strip(): line[24:] for line in lines}


def test_a_pack_is_shown_with_its_labels() -> None:
    facts = shown(encoder_pack("bert").directory)
    assert facts["model"] == "bert, an encoder"
    assert facts["labels"] == "3: sad, glad, neither"
    assert (facts["heads"], facts["context"], facts["vocabulary"]) == ("4 of 16", "40", "260")
    assert shown(encoder_pack("bare roberta").directory)["labels"] == "none: it gives embeddings"
    assert shown(encoder_pack("bare roberta").directory)["context"] == "38"


def test_a_labelled_example_is_as_long_as_its_text() -> None:
    example = Labelled("a word: ä", "good")
    assert (text_of(example), size_bytes(example)) == ("a word: ä", 10)
    with pytest.raises(DataError, match="text is empty"):
        Labelled("", 1)


@pytest.mark.parametrize("count", [2, 3, 9, 10, 19, 40, 100])
def test_a_tenth_of_labelled_records_is_held_out_and_a_fair_part_of_each_label(count: int) -> None:
    sorted_by_label = tuple(Labelled(f"text {n}", "bad" if n < count // 2 else "good") for n in range(count))
    train, held_out = split_records(sorted_by_label)
    assert len(held_out) == max(1, count // 10)
    assert [*sorted((*train, *held_out), key=lambda r: int(r.text.split()[1]))] == list(sorted_by_label)  # type: ignore[union-attr]
    labels = [record.label for record in held_out if isinstance(record, Labelled)]
    assert abs(labels.count("bad") - labels.count("good")) <= 1


def test_other_records_are_held_out_from_the_end() -> None:
    records: tuple[Example, ...] = tuple(TextRecord(str(n)) for n in range(20))
    assert split_records(records) == (records[:18], records[18:])
    mixed: tuple[Example, ...] = (*records, Labelled("a", 1))
    assert split_records(mixed) == (mixed[:19], mixed[19:])
