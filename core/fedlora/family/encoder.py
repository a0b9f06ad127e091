"""The encoders: one description of BERT, RoBERTa and DistilBERT, which differ in names and in the head.

    x = norm(words[token] + positions[first_position + i] + types[0])
    h = norm(x + o(attention(q(x), k(x), v(x))))      every token sees every other of its text that is not padding
    y = norm(h + output(gelu(intermediate(h))))
    norm(x) = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias        (arXiv:1607.06450)

    scores = out(f(dense(y[0])))       f = tanh, or relu for DistilBERT; without a head: embedding = pooled y

`text_embedding.py` says how y is pooled. All of an encoder's linear modules have biases. (BERT, arXiv:1810.04805; RoBERTa,
arXiv:1907.11692; DistilBERT, arXiv:1910.01108.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from numpy.typing import NDArray

from fedlora.family.text_embedding import TextEmbedding

Role = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
HEAD_PARTS = ("classifier", "pooler")  # what the names of a head's modules have in them
ROLES: tuple[Role, ...] = ("query", "key", "value", "attention_output", "intermediate", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderNames:
    """What a family calls its parts; those of a layer are within it."""

    embeddings: str
    layer: str  # with {} for its number
    roles: Mapping[Role, str]  # the linear modules
    attention_norm: str
    output_norm: str
    head_dense: str  # the first module of the classification head, from the root of the checkpoint
    head_out: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncoderShape:
    """The sizes, constants and names of one encoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    max_positions: int  # tokens of a text
    first_position: int  # of the first token, in the table of positions (RoBERTa: 2)
    type_vocab_size: int  # 0: no types
    layer_norm_eps: float
    pad_token_id: int
    labels: tuple[str, ...]  # of the classification head; empty: there is none
    head_activation: Literal["tanh", "relu"]
    names: EncoderNames
    model_type: str
    base_prefix: str  # of the tensors of a model with a head, which a bare one's lack
    embedding: TextEmbedding  # without a head: how a text becomes a vector

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def embedding_size(self) -> int:
        """The numbers of a text's vector."""
        return self.embedding.size(self.hidden_size)

    def layer_name(self, layer: int) -> str:
        return self.names.layer.format(layer)

    def module(self, layer: int, role: Role) -> str:
        """The full name of a linear module."""
        return f"{self.layer_name(layer)}.{self.names.roles[role]}"

    def block_norms(self, layer: int) -> tuple[str, str]:
        """The full names of the norms after the attention and after the second half."""
        prefix = self.layer_name(layer)
        return f"{prefix}.{self.names.attention_norm}", f"{prefix}.{self.names.output_norm}"

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """{module name: (O, I)} of every linear layer in the blocks, in the order of the computation."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes = {"intermediate": (inner, hidden), "output": (hidden, inner)}
        return {
            self.module(layer, role): shapes.get(role, (hidden, hidden))
            for layer in range(self.num_layers)
            for role in ROLES
        }

    def linear_groups(self) -> list[tuple[str, ...]]:
        """The linear modules, those that read the same input together."""
        groups: tuple[tuple[Role, ...], ...] = (ROLES[:3], *((role,) for role in ROLES[3:]))
        return [
            tuple(self.module(layer, role) for role in group) for layer in range(self.num_layers) for group in groups
        ]

    def fed_by(self, module: str) -> tuple[str, int] | None:
        """As of a decoder: what the attention gives is made of the values, feature by feature."""
        for layer in range(self.num_layers):
            if module == self.module(layer, "attention_output"):
                return self.module(layer, "value"), 0
        return None

    def scaled_inputs(self) -> tuple[str, ...]:
        """Modules whose input a graph scales itself: before `output` stands gelu, which no scale goes through."""
        return tuple(self.module(layer, "output") for layer in range(self.num_layers))

    def vocabulary_modules(self) -> dict[str, tuple[int, int]]:
        """{module name: (V, H)} of the word embedding."""
        return {f"{self.names.embeddings}.word_embeddings": (self.vocab_size, self.hidden_size)}

    def norm_modules(self) -> dict[str, int]:
        """{name: size} of the layer norms, each a weight and a bias."""
        names = [f"{self.names.embeddings}.LayerNorm"]
        for layer in range(self.num_layers):
            names += self.block_norms(layer)
        return dict.fromkeys(names, self.hidden_size)

    def float_tensors(self) -> dict[str, tuple[int, ...]]:
        """{tensor name: shape} of what is stored in float32: tables, norms, biases and the head."""
        hidden, embeddings, names = self.hidden_size, self.names.embeddings, self.names
        tensors: dict[str, tuple[int, ...]] = {
            f"{embeddings}.position_embeddings.weight": (self.first_position + self.max_positions, hidden)
        }
        if self.type_vocab_size:
            tensors[f"{embeddings}.token_type_embeddings.weight"] = (self.type_vocab_size, hidden)
        for module in self.norm_modules():
            tensors |= {f"{module}.weight": (hidden,), f"{module}.bias": (hidden,)}
        tensors |= {f"{module}.bias": (rows,) for module, (rows, _) in self.linear_modules().items()}
        if self.labels:
            tensors |= {f"{names.head_dense}.weight": (hidden, hidden), f"{names.head_dense}.bias": (hidden,)}
            tensors |= {
                f"{names.head_out}.weight": (len(self.labels), hidden),
                f"{names.head_out}.bias": (len(self.labels),),
            }
        return tensors if self.labels else tensors | self.embedding.float_tensors()

    def head_parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """{a part of the head, as PEFT's `modules_to_save` names it: {tensor name: shape}}; empty where there is no head.

        PEFT takes every module whose name ends so: `classifier` is DistilBERT's `pre_classifier` too.
        """
        if not self.labels:
            return {}
        modules, shapes = (self.names.head_dense, self.names.head_out), self.float_tensors()
        found = (name for module in modules for name in module.split(".") if name.endswith(HEAD_PARTS))
        return {
            part: {
                f"{module}.{kind}": shapes[f"{module}.{kind}"]
                for module in modules
                if any(name.endswith(part) for name in module.split("."))
                for kind in ("weight", "bias")
            }
            for part in dict.fromkeys(found)
        }

    def head_inputs(self) -> dict[str, tuple[int, ...]]:
        """{tensor name: shape} of the whole head, -1 for the number of labels, in which an adapter's own may differ."""
        if not self.labels:
            return {}
        out = self.names.head_out
        shapes = {name: shape for part in self.head_parts().values() for name, shape in part.items()}
        return shapes | {f"{out}.weight": (-1, self.hidden_size), f"{out}.bias": (-1,)}

    def float_offset(self, tensor: str) -> float:
        """What is added to a tensor of the checkpoint before it is stored."""
        return 0.0


def labels_of(shape: EncoderShape, count: int) -> tuple[str, ...]:
    """The names of the labels of a head for `count` of them: the base's where it has as many, else LABEL_0, LABEL_1, ..."""
    return shape.labels if count == len(shape.labels) else tuple(f"LABEL_{number}" for number in range(count))


def with_head_of(shape: EncoderShape, tensors: Mapping[str, NDArray[Any]]) -> EncoderShape:
    """`shape` with the labels of the head that is among an adapter's tensors; as it is where none is."""
    weight = tensors.get(f"{shape.names.head_out}.weight")
    return shape if weight is None else replace(shape, labels=labels_of(shape, len(weight)))
