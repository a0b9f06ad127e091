"""The field `adapters` of a request: several adapters that answer together, each with a weight."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedlora_serve.adapters.together import MAX_WEIGHT
from fedlora_serve.http.protocol.field_types import Number, Text
from fedlora_serve.http.protocol.request_body import RequestBody
from fedlora_serve.limits import MOST_ADAPTERS


class AdapterShare(RequestBody):
    """One of them."""

    name: Annotated[Text, Field(min_length=1, max_length=256, description="An adapter's name.")]
    weight: Annotated[Number, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] | None = Field(
        1.0, description="By which its update is multiplied; a negative one takes it away."
    )

    @property
    def factor(self) -> float:
        return 1.0 if self.weight is None else float(self.weight)


AdapterShares = Annotated[
    list[AdapterShare] | None,
    Field(
        max_length=MOST_ADAPTERS,
        fail_fast=True,
        description="Adapters that answer together, where model names the base: the base's weights and the weighted sum of "
        "their updates.",
    ),
]
