"""An encoder over a packed base with LoRA on any of its linear modules: scores or embeddings, losses and gradients.

It is trained through the interface of the decoder: a text is one window, padded at its end; its label is the target of
its first token, and nothing is learned elsewhere. Torch's autograd goes through one block at a time; a block's
activations are kept where memory allows, and computed again elsewhere. What an adapter has of the classification head
trains in place of the base's, which is frozen; the head asks of the last block only what it gives for the first tokens.
"""

# S texts, T tokens of a window, N = S T rows, H hidden size, L labels

from __future__ import annotations

from collections.abc import Sequence

import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import TrainConfig
from fedlora.data.examples import Example
from fedlora.errors import ConfigError, PackError
from fedlora.family import EncoderShape
from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet
from torch import Tensor

from fedlora_client.data.encoder_windows import label_windows
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.encoder import budget
from fedlora_client.encoder.block import EncoderBlock, LayerNorm, TextBatch
from fedlora_client.encoder.checkpointing import CheckpointedPass
from fedlora_client.encoder.head import EncoderHead
from fedlora_client.encoder.padding import check_padding
from fedlora_client.encoder.pooling import pooled
from fedlora_client.layers.batch import Dropout, no_dropout
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import NOTHING_KEPT, Memory, MemoryPlan, StepPlan
from fedlora_client.ops.compute import Compute, choose_compute
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.plain_ops import embedding_rows
from fedlora_client.ops.workspace import Workspace


class Encoder:
    """The frozen base. It has no state but the mapped weights: any number of threads may share one.

    `starts` [S, T] tells text from padding: 0 where there is text, its own place where a position is padding, which is at
    the end. A row without text, or with text after padding, is a DataError.
    """

    unit = "text"  # of a loss

    def __init__(self, base: BasePack, compute: Compute | None = None) -> None:
        """Raises PackError where the base is no encoder."""
        if not isinstance(base.model, EncoderShape):
            raise PackError(f"{base.directory}: a decoder ({base.model.model_type}); this needs an encoder")
        self.base, self.shape = base, base.model
        self.compute = compute or choose_compute()
        shape, device, dtype = self.shape, self.compute.device, self.compute.dtype
        modules = shape.linear_modules() | shape.vocabulary_modules()
        matrices = {module: PackedMatrix.of(base.matrix(module), device) for module in modules}
        floats = {name: torch.from_numpy(base.floats(name)).to(device) for name in shape.float_tensors()}
        (words,), prefix = shape.vocabulary_modules(), shape.names.embeddings
        self._words = matrices[words]
        self._positions = floats[f"{prefix}.position_embeddings.weight"][shape.first_position :]
        if shape.type_vocab_size:
            self._positions = self._positions + floats[f"{prefix}.token_type_embeddings.weight"][0]
        norm = f"{prefix}.LayerNorm"
        self._norm = LayerNorm(floats[f"{norm}.weight"], floats[f"{norm}.bias"], shape.layer_norm_eps)
        self._blocks = [
            EncoderBlock(layer, shape, matrices, floats, self.compute.ops, dtype) for layer in range(shape.num_layers)
        ]
        self._head = EncoderHead(shape, floats) if shape.labels else None
        self._dense = {} if shape.labels else {name: floats[name] for name in shape.embedding.float_tensors()}

    def windows(self, examples: Sequence[Example], length: int, where: str) -> Windows:
        """A window of `length` tokens for each text and its label: see `label_windows`."""
        return label_windows(examples, open_tokenizer(self.base.directory), self.shape, length, where)

    def plan_step(
        self, config: TrainConfig, rank: int, memory: Memory, adapters: int = 1, *, scaled: bool = False
    ) -> StepPlan:
        """How a step is cut; `scaled` where vectors scale modules. Raises ConfigError where memory does not suffice."""
        return budget.plan_step(self.shape, config, rank, self.compute, memory, adapters, scaled=scaled)

    def cut_measurement(self, length: int, *, frugal: bool) -> tuple[int, MemoryPlan]:
        """(texts of `length` tokens at a time, memory plan) of a measurement, which keeps nothing."""
        return 1 if frugal else max(1, self.compute.rows // length), NOTHING_KEPT

    def losses_and_labels(
        self, windows: Windows, lora: LoraTensors | None, space: Workspace, memory_plan: MemoryPlan
    ) -> tuple[Tensor, Tensor | None]:
        """(`losses` of the windows, int64 [S]: the label of the highest score of each text)"""
        first, _ = self._forward(windows.inputs, windows.starts, lora, space, first_only=True)
        head = self._trained_head()
        losses = _at_first(head.losses(first, self._labels(windows.targets), lora), windows.targets)
        return losses, head.scores(first, lora).argmax(1)

    def score_shift(self, windows: Windows, label_prior: float) -> Tensor | None:
        """What is added to the scores of these texts while they are learned, float32 [L]; None without a prior.

        label_prior * log(share of the texts with each label): -inf for a label that none has, which then has no part in
        the softmax. Menon et al., "Long-Tail Learning via Logit Adjustment", arXiv:2007.07314.
        """
        if not label_prior:
            return None
        counts = torch.bincount(windows.targets[:, 0], minlength=len(self.shape.labels)).float()
        return label_prior * torch.log(counts / counts.sum())

    def workspace(self) -> Workspace:
        """For whoever computes: one each."""
        return Workspace(self.compute.device, self.compute.dtype)

    def lora(self, *adapters: Adapter, trains: FactorSet = "AB", frozen: Adapter | None = None) -> LoraTensors:
        """The adapters as tensors of which `trains` train, side by side; what they have of the head trains."""
        return LoraTensors(adapters, self.compute.device, trains, frozen, self.shape)

    def logits(self, tokens: Tensor, lora: LoraTensors | None = None, starts: Tensor | None = None) -> Tensor:
        """The scores of each label, float32 [S, L], or without a head the embeddings [S, H]; tokens int64 [S, T]"""
        starts = torch.zeros_like(tokens) if starts is None else starts
        y, is_text = self._forward(tokens, starts, lora, self.workspace(), first_only=self._head is not None)
        if self._head:
            return self._head.scores(y, lora)
        return pooled(self.shape.embedding, y.float(), is_text, self._dense)

    def losses(
        self, tokens: Tensor, targets: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace,
        memory_plan: MemoryPlan = NOTHING_KEPT,
    ) -> Tensor:  # fmt: skip
        """Nats of each text's label at its first token, 0 elsewhere: float32 [S, T]; all others int64 [S, T]"""
        first, _ = self._forward(tokens, starts, lora, space, first_only=True)
        return _at_first(self._trained_head().losses(first, self._labels(targets), lora), targets)

    def add_gradients(
        self,
        tokens: Tensor,  # int64 [S, T]; of C adapters, each has S / C consecutive texts
        targets: Tensor,  # int64 [S, T]
        starts: Tensor,  # int64 [S, T]
        row_scale: Tensor,  # float32 [S, T]
        lora: LoraTensors,
        space: Workspace,
        memory_plan: MemoryPlan = NOTHING_KEPT,
        dropout: Dropout = no_dropout,
        shift: Tensor | None = None,  # float32 [S, L], see `score_shift`
    ) -> Tensor:  # float32 [S, T]
        """Add the gradients of sum(row_scale * losses) to those of `lora`; return the losses."""
        x, batch = self._begin(tokens, starts, lora, space, dropout)
        first_kept = self.shape.num_layers - 1 - memory_plan.kept_blocks
        passes: list[CheckpointedPass] = []
        for layer, block in enumerate(self._blocks):
            keep, is_last = layer >= first_kept, layer == self.shape.num_layers - 1
            passes.append(CheckpointedPass(block, x, batch, keep=keep, first_only=is_last))
            x = passes[-1].output
        with torch.enable_grad():
            first, labels = x.detach().requires_grad_(), self._labels(targets)
            own = {name: extra.values.detach().requires_grad_() for name, extra in lora.extras.items()}
            losses = self._trained_head().losses_with(own, first, labels, shift)
            scaled = (losses * row_scale[:, 0].to(losses.device)).sum()
        gradient, *of_head = torch.autograd.grad(scaled, (first, *own.values()))
        for extra, part in zip(lora.extras.values(), of_head, strict=True):
            extra.gradients.add_(part)
        while passes:
            gradient = passes.pop().backward(gradient)
        return _at_first(losses.detach(), targets)

    def _forward(
        self, tokens: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace, *, first_only: bool
    ) -> tuple[Tensor, Tensor]:
        """(the last block's output [S, T', H], or [S, H] at first tokens alone; bool [S, T']: where there is text)"""
        with torch.no_grad():
            x, batch = self._begin(tokens, starts, lora, space, no_dropout)
            for block in self._blocks[:-1]:
                x = block.forward(x, batch)
            y = self._blocks[-1].forward(x, batch, first_only=first_only)
            return y if first_only else y.view(*batch.is_text.shape, -1), batch.is_text

    def _begin(
        self, tokens: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace, dropout: Dropout
    ) -> tuple[Tensor, TextBatch]:
        """The embedded tokens [N, H]; what all of the texts have for padding is left away."""
        is_text = starts == 0
        check_padding(is_text)
        longest = int(is_text.sum(1).max())
        is_text, tokens = (part[:, :longest].to(self.compute.device) for part in (is_text, tokens))
        words = torch.empty(tokens.numel(), self.shape.hidden_size, device=self.compute.device)
        embedding_rows(self._words, tokens.flatten(), words)
        x = words.view(*tokens.shape, -1) + self._positions[:longest]
        return self._norm(x.flatten(0, 1)).to(self.compute.dtype), TextBatch(is_text, lora, dropout, space)

    def _labels(self, targets: Tensor) -> Tensor:
        return targets[:, 0].to(self.compute.device)

    def _trained_head(self) -> EncoderHead:
        if self._head is None:
            raise ConfigError(
                f"{self.base.directory}: {self.shape.model_type} without a classification head gives embeddings, and "
                "has no labels to learn; pack a model ForSequenceClassification"
            )
        return self._head


def _at_first(losses: Tensor, targets: Tensor) -> Tensor:
    """[S] -> [S, T]: at the first token of each text, 0 elsewhere"""
    result = torch.zeros(targets.shape, device=losses.device)
    result[:, 0] = losses
    return result
