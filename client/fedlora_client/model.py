"""What a training needs of a model: the one interface of the decoder and of the encoder, and which of them a pack is."""

# S windows, T tokens of each

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fedlora.base.pack import BasePack
from fedlora.config.run import TrainConfig
from fedlora.data.examples import Example
from fedlora.family import EncoderShape, ModelShape
from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet
from torch import Tensor

from fedlora_client.data.windows import Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.layers.batch import Dropout
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import Memory, MemoryPlan, StepPlan
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.workspace import Workspace


class Model(Protocol):
    """A frozen base: `Decoder` or `Encoder`, which say what each method gives."""

    base: BasePack
    compute: Compute

    @property
    def shape(self) -> ModelShape: ...

    @property
    def unit(self) -> str: ...

    def windows(self, examples: Sequence[Example], length: int, where: str) -> Windows: ...

    def plan_step(
        self, config: TrainConfig, rank: int, memory: Memory, adapters: int = 1, *, scaled: bool = False
    ) -> StepPlan: ...

    def cut_measurement(self, length: int, *, frugal: bool) -> tuple[int, MemoryPlan]: ...

    def losses_and_labels(
        self, windows: Windows, lora: LoraTensors | None, space: Workspace, memory_plan: MemoryPlan
    ) -> tuple[Tensor, Tensor | None]: ...

    def workspace(self) -> Workspace: ...

    def lora(self, *adapters: Adapter, trains: FactorSet = "AB", frozen: Adapter | None = None) -> LoraTensors: ...

    def logits(self, tokens: Tensor, lora: LoraTensors | None = None, starts: Tensor | None = None) -> Tensor: ...

    def losses(
        self, tokens: Tensor, targets: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace,
        memory_plan: MemoryPlan = ...,
    ) -> Tensor: ...  # fmt: skip

    def add_gradients(
        self, tokens: Tensor, targets: Tensor, starts: Tensor, row_scale: Tensor, lora: LoraTensors, space: Workspace,
        memory_plan: MemoryPlan = ..., dropout: Dropout = ..., shift: Tensor | None = ...,
    ) -> Tensor: ...  # fmt: skip

    def score_shift(self, windows: Windows, label_prior: float) -> Tensor | None: ...


def open_model(base: BasePack, compute: Compute | None = None) -> Model:
    """The model of a pack, ready to compute."""
    return Encoder(base, compute) if isinstance(base.model, EncoderShape) else Decoder(base, compute)
