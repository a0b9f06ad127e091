"""A decoder over a packed base with LoRA on any of its linear modules: logits, losses and gradients.

The backward is written by hand. It keeps the input of each block and, of as many blocks as memory allows, what the
block's backward needs; the other blocks are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import TrainConfig
from fedlora.data.examples import Example
from fedlora.errors import ConfigError
from fedlora.family import EMBEDDING, FINAL_NORM, HEAD
from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet
from torch import Tensor

from fedlora_client.data.windows import IGNORED, Windows, read_windows
from fedlora_client.decoder import budget
from fedlora_client.decoder.block import Activations, Block
from fedlora_client.decoder.head import Head
from fedlora_client.decoder.rotary import ropes_of
from fedlora_client.layers.batch import Batch, Dropout, no_dropout
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import NOTHING_KEPT, Memory, MemoryPlan, StepPlan
from fedlora_client.layers.virtual_tokens import Layout, Prompt, laid_out
from fedlora_client.ops.compute import Compute, choose_compute
from fedlora_client.ops.packed import PackedMatrix
from fedlora_client.ops.plain_ops import embedding_rows
from fedlora_client.ops.workspace import Workspace

# S sequences, T tokens of each, N = S T rows, H hidden size, V vocabulary, D head size
# L layers, K key/value heads, P virtual tokens


class Decoder:
    """The frozen base. It has no state but the mapped weights: any number of threads may share one."""

    unit = "token"  # of a loss

    def __init__(self, base: BasePack, compute: Compute | None = None) -> None:
        self.base, self.shape = base, base.shape
        self.compute = compute or choose_compute()
        device, shape = self.compute.device, base.shape
        modules = shape.linear_modules() | shape.vocabulary_modules()
        matrices = {module: PackedMatrix.of(base.matrix(module), device) for module in modules}
        norms = {module: torch.from_numpy(base.norm(module)).to(device) for module in shape.norm_modules()}
        self._embedding = matrices[EMBEDDING]
        biases = {
            module: torch.from_numpy(base.floats(f"{module}.bias")).to(device, self.compute.dtype)
            for module in shape.linear_modules()
            if shape.is_biased(module)
        }
        layers = range(shape.num_layers)
        self._blocks = [Block(layer, shape, matrices, norms, biases, self.compute.ops) for layer in layers]
        self._head_module = EMBEDDING if shape.tie_word_embeddings else HEAD
        self._head = Head(
            matrices[self._head_module], norms[FINAL_NORM], shape.rms_norm_eps, self.compute, shape.logit_cap
        )

    def windows(self, examples: Sequence[Example], length: int, where: str) -> Windows:
        """What is read and learned of the examples, `length` tokens at a time: see `make_windows`."""
        return read_windows(examples, self.base.directory, self.shape, length, where)

    def plan_step(
        self, config: TrainConfig, rank: int, memory: Memory, adapters: int = 1, *, scaled: bool = False
    ) -> StepPlan:
        """How a step is cut; `scaled` where vectors scale modules. Raises ConfigError where memory does not suffice."""
        return budget.plan_step(self.shape, config, rank, self.compute, memory, adapters, scaled=scaled)

    def cut_measurement(self, length: int, *, frugal: bool) -> tuple[int, MemoryPlan]:
        """(windows of `length` tokens at a time, memory plan) of a measurement, which keeps nothing."""
        return budget.cut_measurement(self.shape, length, self.compute, frugal=frugal)

    def losses_and_labels(
        self, windows: Windows, lora: LoraTensors | None, space: Workspace, memory_plan: MemoryPlan
    ) -> tuple[Tensor, Tensor | None]:
        """(`losses` of the windows, None: their texts have no labels)"""
        return self.losses(windows.inputs, windows.targets, windows.starts, lora, space, memory_plan), None

    def score_shift(self, windows: Windows, label_prior: float) -> None:
        """None. Raises ConfigError where one is asked for."""
        if label_prior:
            raise ConfigError(
                f"train.label_prior is {label_prior}, and {self.shape.model_type} is a decoder, which learns no labels; "
                "leave it out"
            )

    def workspace(self) -> Workspace:
        """For whoever computes: one each."""
        return Workspace(self.compute.device, self.compute.dtype)

    def lora(self, *adapters: Adapter, trains: FactorSet = "AB", frozen: Adapter | None = None) -> LoraTensors:
        """The adapters as tensors of which `trains` train, side by side; lm_head.weight [V, H] among their extra tensors
        trains in place of the base's head.

        With one of them there may be a head, and an adapter that stands frozen beside it.
        """
        assert len(adapters) == 1 or not adapters[0].extras
        return LoraTensors(adapters, self.compute.device, trains, frozen, self.shape)

    def logits(
        self,
        tokens: Tensor,  # int64 [S, T]
        lora: LoraTensors | None = None,
        starts: Tensor | None = None,  # int64 [S, T]; None: each sequence is one example
    ) -> Tensor:  # [S, T, V]
        """The scores of each next token. T is at most the base's `max_positions`."""
        space = self.workspace()
        x, layout = self._forward(tokens, starts, lora, space)
        x = x if layout is None else x[layout.tokens]
        return self._head.logits(x, space, lora).view(*tokens.shape, -1)

    def next_scores(
        self,
        tokens: Tensor,  # int64 [S, T], padded at the end
        starts: Tensor,  # int64 [S, T]: 0, and of padding its own place
        lengths: Tensor,  # int64 [S], without the padding
        lora: LoraTensors | None,
        space: Workspace,
    ) -> Tensor:  # [S, V]
        """The scores of the token after each sequence's last."""
        x, layout = self._forward(tokens, starts, lora, space)
        x = (x if layout is None else x[layout.tokens]).view(*tokens.shape, -1)
        return self._head.logits(x[torch.arange(len(tokens)), lengths.to(x.device) - 1], space, lora)

    def virtual_heads(self, lora: LoraTensors) -> Tensor:  # float32 [2 L, K, P, D]
        """Of each layer the keys, then the values, of the virtual tokens, as attention reads them: no text changes them."""
        assert lora.virtual is not None
        token, space, heads = torch.zeros(1, 1, dtype=torch.long), self.workspace(), list[Tensor]()
        batch = self._batch(token, token, lora, no_dropout, None)  # they stand before a text: here of a single token
        here, there = (space.get(name, batch.rows, self.shape.hidden_size) for name in ("here", "there"))
        self._embed(token, here, batch)
        for block in self._blocks:
            kept = block.forward(here, batch, space, there).attention.heads
            heads += [part[0, :, : lora.virtual.count].to(torch.float32, copy=True) for part in (kept.k, kept.v)]
            here, there = there, here
        return torch.stack(heads)

    def losses(
        self, tokens: Tensor, targets: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace,
        memory_plan: MemoryPlan = NOTHING_KEPT,
    ) -> Tensor:  # fmt: skip
        """Nats of each target, float32 [S, T], 0 where it is IGNORED; tokens, targets, starts int64 [S, T]"""
        x, layout = self._forward(tokens, starts, lora, space, targets != IGNORED)
        targets = targets.to(self.compute.device)
        spread = targets if layout is None else layout.spread(targets, IGNORED)
        losses = self._head.losses(x, spread.flatten(), space, memory_plan.chunk_rows, lora)
        return (losses if layout is None else losses[layout.tokens]).view(targets.shape)

    def add_gradients(
        self,
        tokens: Tensor,  # int64 [S, T]; of C adapters, each has S / C consecutive sequences
        targets: Tensor,  # int64 [S, T]
        starts: Tensor,  # int64 [S, T]
        row_scale: Tensor,  # float32 [S, T]
        lora: LoraTensors,
        space: Workspace,
        memory_plan: MemoryPlan = NOTHING_KEPT,
        dropout: Dropout = no_dropout,
        shift: Tensor | None = None,  # no decoder has one
    ) -> Tensor:  # float32 [S, T]
        """Add the gradients of sum(row_scale * losses) to those of `lora`; return the losses."""
        device = self.compute.device
        last = self.shape.num_layers - 1  # its backward follows its forward: nothing is computed again
        first_kept = last - memory_plan.kept_blocks
        batch = self._batch(tokens, starts, lora, dropout, targets != IGNORED)
        rows, hidden, layout = batch.rows, self.shape.hidden_size, batch.layout
        inputs = space.get("inputs", self.shape.num_layers + 1, rows, hidden)
        self._embed(tokens, inputs[0], batch)
        kept: list[Activations] = []
        for layer, block in enumerate(self._blocks):
            keep = space.part(f"block {layer}") if first_kept <= layer < last else None
            kept.append(block.forward(inputs[layer], batch, space, inputs[layer + 1], keep))
        gradient = space.get("gradient", rows, hidden)
        targets, row_scale = targets.to(device), row_scale.to(device)
        learned, scales = (targets, row_scale) if layout is None else (
            layout.spread(targets, IGNORED), layout.spread(row_scale)
        )  # fmt: skip
        losses = self._head.losses(
            inputs[-1], learned.flatten(), space, memory_plan.chunk_rows, lora, gradient, scales.flatten()
        )
        for layer, block in reversed(list(enumerate(self._blocks))):
            x = inputs[layer]
            activations = kept[layer] if layer >= first_kept else block.forward(x, batch, space, None)
            is_last = layer == 0 and not isinstance(lora.virtual, Prompt)
            block.backward(x, activations, gradient, batch, space, is_last=is_last)
        if layout is not None and isinstance(lora.virtual, Prompt):
            lora.virtual.add_gradients(gradient, layout)
        return (losses if layout is None else losses[layout.tokens]).view(targets.shape)

    def _forward(
        self, tokens: Tensor, starts: Tensor | None, lora: LoraTensors | None, space: Workspace,
        learned: Tensor | None = None,
    ) -> tuple[Tensor, Layout | None]:  # fmt: skip
        """(the input [N, H] of the last norm, where the tokens are in it if there are virtual ones)"""
        batch = self._batch(tokens, torch.zeros_like(tokens) if starts is None else starts, lora, no_dropout, learned)
        here, there = (space.get(name, batch.rows, self.shape.hidden_size) for name in ("here", "there"))
        self._embed(tokens, here, batch)
        for block in self._blocks:
            block.forward(here, batch, space, there)
            here, there = there, here
        return here, batch.layout

    def _embed(self, tokens: Tensor, out: Tensor, batch: Batch) -> None:
        """out [N, H] = the scaled embeddings of tokens [S, T], and what virtual ones among them read"""
        tokens = tokens.to(self.compute.device)
        embedding_rows(self._embedding, (batch.layout.spread(tokens) if batch.layout else tokens).flatten(), out)
        if self.shape.embedding_scale != 1:
            out.mul_(self.shape.embedding_scale)
        if batch.layout is not None and batch.lora is not None and batch.lora.virtual is not None:
            batch.lora.virtual.put(out, batch.layout)

    def _batch(
        self, tokens: Tensor, starts: Tensor, lora: LoraTensors | None, dropout: Dropout, learned: Tensor | None
    ) -> Batch:  # `learned`: bool [S, T]
        shape, layers = self.shape, range(self.shape.num_layers)
        starts = starts.to(self.compute.device).contiguous()
        layout, reach = None, 0
        if lora is not None and (virtual := lora.virtual):
            learned = None if learned is None else learned.to(starts.device)
            layout, reach = laid_out(starts, virtual.count, learned), tokens.shape[1] + virtual.count
            starts = layout.starts
        query = torch.arange(starts.shape[1], device=starts.device)
        # Of a window the first key is a later one; positions count from the example's start all the same.
        first_keys = {w: torch.maximum(starts, query - w + 1) if w else starts for w in map(shape.window_of, layers)}
        return Batch(
            first_keys=[first_keys[shape.window_of(layer)] for layer in layers],
            ropes=ropes_of(shape, starts, reach),
            lora=lora,
            dropout=dropout,
            layout=layout,
        )
