"""An encoder with a classification head: texts in, the probabilities of their labels out.

The head is the base's, or the adapter's own, which may be for other labels.
"""

# S texts, L labels

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.errors import PackError
from fedlora.family import EncoderShape
from fedlora.family.encoder import labels_of, with_head_of
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.text_encoder import TextEncoder


class Classifier(TextEncoder):
    """The labels of texts."""

    output, what = "scores", "a score"

    @classmethod
    def shape_of(cls, base: BasePack) -> EncoderShape:
        """The model, where it has a head. Raises PackError."""
        shape = base.model
        if not isinstance(shape, EncoderShape) or not shape.labels:
            raise PackError(
                f"{base.directory}: {shape.model_type} without a classification head, which gives no labels; pack a model "
                "ForSequenceClassification"
            )
        return shape

    def label_count(self, adapter: LoadedAdapter | None) -> int:
        """How many labels there are with an adapter: those of its own head, or the base's."""
        assert isinstance(self.base.model, EncoderShape)
        shape = self.base.model if adapter is None else with_head_of(self.base.model, adapter.inputs)
        return len(shape.labels)

    def labels(self, count: int) -> tuple[str, ...]:
        """The names of so many labels."""
        return labels_of(self._shape, count)

    def probabilities(
        self, rows: Sequence[Sequence[int]], adapter: LoadedAdapter | None = None
    ) -> NDArray[np.float64]:  # [S, L]
        """softmax(scores) of each text. Raises as `vectors`."""
        scores = self.vectors(rows, adapter).astype(np.float64)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return result
