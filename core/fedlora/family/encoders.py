"""How each encoder family's `config.json` is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedlora.family.encoder import EncoderNames, EncoderShape
from fedlora.family.sizes import check_sizes, number, switch, whole
from fedlora.family.text_embedding import TextEmbedding

Config = Mapping[str, Any]  # a config.json

_BERT = EncoderNames(
    embeddings="embeddings",
    layer="encoder.layer.{}",
    roles={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
    },
    attention_norm="attention.output.LayerNorm",
    output_norm="output.LayerNorm",
    head_dense="bert.pooler.dense",
    head_out="classifier",
)
_DISTILBERT = EncoderNames(
    embeddings="embeddings",
    layer="transformer.layer.{}",
    roles={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "intermediate": "ffn.lin1",
        "output": "ffn.lin2",
    },
    attention_norm="sa_layer_norm",
    output_norm="output_layer_norm",
    head_dense="pre_classifier",
    head_out="classifier",
)
# config.json's names of the sizes; DistilBERT has its own.
_SIZES = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}  # fmt: skip
_DISTILBERT_SIZES = {
    "hidden_size": "dim", "intermediate_size": "hidden_dim", "num_layers": "n_layers", "num_heads": "n_heads",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    prefix: str
    names: EncoderNames
    head_activation: Literal["tanh", "relu"] = "tanh"
    sizes: Mapping[str, str] = field(default_factory=lambda: _SIZES)
    offset: bool = False  # the first position is the one after the padding's
    padding: int = 0  # where config.json does not say
    types: bool = True
    layer_norm_eps: float | None = None  # None: config.json's


_BERT_FAMILY = _Family(prefix="bert.", names=_BERT)
_ROBERTA_FAMILY = _Family(
    prefix="roberta.",
    names=replace(_BERT, head_dense="classifier.dense", head_out="classifier.out_proj"),
    offset=True,
    padding=1,
)
_DISTILBERT_FAMILY = _Family(
    prefix="distilbert.", names=_DISTILBERT, head_activation="relu", sizes=_DISTILBERT_SIZES, types=False,
    layer_norm_eps=1e-12,  # whatever config.json says
)  # fmt: skip
ENCODERS: Mapping[str, _Family] = {
    "BertModel": _BERT_FAMILY,
    "BertForSequenceClassification": _BERT_FAMILY,
    "RobertaModel": _ROBERTA_FAMILY,
    "RobertaForSequenceClassification": _ROBERTA_FAMILY,
    "DistilBertModel": _DISTILBERT_FAMILY,
    "DistilBertForSequenceClassification": _DISTILBERT_FAMILY,
}


def read_encoder(architecture: str, config: Config) -> EncoderShape:
    """Raises KeyError for what is missing, and ValueError or TypeError for what makes no sense."""
    family, has_head = ENCODERS[architecture], architecture.endswith("ForSequenceClassification")
    sizes = {name: whole(config[key]) for name, key in family.sizes.items()}
    sizes["vocab_size"] = whole(config["vocab_size"])
    named = config.get("pad_token_id")
    padding = family.padding if named is None else whole(named)
    first = padding + 1 if family.offset else 0
    sizes["max_positions"] = whole(config["max_position_embeddings"]) - first
    _check(config, sizes, padding)
    return EncoderShape(
        **sizes,
        first_position=first,
        type_vocab_size=whole(config.get("type_vocab_size", 2)) if family.types else 0,
        layer_norm_eps=family.layer_norm_eps or number(config.get("layer_norm_eps", 1e-12)),
        pad_token_id=padding,
        labels=_labels(config) if has_head else (),
        head_activation=family.head_activation,
        # A bare model's tensors have no prefix.
        names=_prefixed(family.names, family.prefix if has_head else ""),
        model_type=str(config.get("model_type", "bert")),
        base_prefix=family.prefix.removesuffix("."),
        embedding=TextEmbedding(),
    )


def _check(config: Config, sizes: Mapping[str, int], padding: int) -> None:
    check_sizes(sizes)
    small = [f"{name} {size}" for name, size in sizes.items() if size < 1]
    if small or sizes["hidden_size"] % sizes["num_heads"]:
        raise ValueError(
            f"expected positive sizes (got {', '.join(small) or 'only such'}) and a hidden size "
            f"({sizes['hidden_size']}) that is a multiple of the heads ({sizes['num_heads']})"
        )
    if not 0 <= padding < sizes["vocab_size"]:
        raise ValueError(f"pad_token_id must be from 0 to {sizes['vocab_size'] - 1}, got {padding}")
    expected = {
        "position_embedding_type": ("absolute", config.get("position_embedding_type", "absolute")),
        "is_decoder": (False, switch(config, "is_decoder")),
        "activation": ("gelu", config.get("hidden_act") or config.get("activation") or "gelu"),
        "problem_type": ("single_label_classification", config.get("problem_type") or "single_label_classification"),
    }
    for key, (supported, got) in expected.items():
        if got != supported:
            raise ValueError(f"{key} is {got!r}; only {supported!r} is supported")


def _labels(config: Config) -> tuple[str, ...]:
    """The names of the classes, by number; transformers' default is two."""
    check_sizes({"num_labels": whole(config.get("num_labels", 2))})
    named = config.get("id2label") or {
        number: f"LABEL_{number}" for number in range(whole(config.get("num_labels", 2)))
    }
    if not isinstance(named, Mapping):
        raise TypeError(f"id2label must be an object, got {named!r:.120}")
    numbers = sorted((int(number), str(label)) for number, label in named.items())
    if [number for number, _ in numbers] != list(range(len(numbers))) or len(numbers) < 2:
        raise ValueError(f"id2label must name two or more classes from 0 up, got {named!r:.120}")
    return tuple(label for _, label in numbers)


def _prefixed(names: EncoderNames, prefix: str) -> EncoderNames:
    return replace(names, embeddings=f"{prefix}{names.embeddings}", layer=f"{prefix}{names.layer}")
