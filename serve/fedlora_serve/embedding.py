"""An encoder without a head: texts in, embeddings out."""

# S texts, E numbers of an embedding

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.errors import PackError
from fedlora.family import EncoderShape
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.text_encoder import TextEncoder


class Embedder(TextEncoder):
    """The vector of a text as its last states are pooled, which the base says."""

    output, what = "embedding", "an embedding"

    @classmethod
    def shape_of(cls, base: BasePack) -> EncoderShape:
        """The model, where it gives embeddings. Raises PackError, which says what does."""
        shape = base.model
        if not isinstance(shape, EncoderShape):
            raise PackError(
                f"{base.directory}: a decoder ({shape.model_type}), which generates text; for embeddings pack an encoder: "
                "BertModel, RobertaModel or DistilBertModel"
            )
        if shape.labels:
            raise PackError(
                f"{base.directory}: an encoder with a classification head, which gives scores of {len(shape.labels)} "
                "labels; for embeddings pack one without: BertModel, RobertaModel or DistilBertModel"
            )
        return shape

    @property
    def hidden_size(self) -> int:
        """The numbers of an embedding."""
        return self._shape.embedding_size

    @property
    def normalized(self) -> bool:
        """Whether the base's embeddings are scaled to length 1, which `embed` leaves to who asks."""
        return self._shape.embedding.normalized

    def embed(
        self, rows: Sequence[Sequence[int]], adapter: LoadedAdapter | None = None
    ) -> NDArray[np.float32]:  # [S, E]
        """The vector of each text, not scaled to length 1. Raises as `vectors`."""
        return self.vectors(rows, adapter).reshape(len(rows), self.hidden_size)
