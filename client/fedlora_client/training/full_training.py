"""Full fine-tuning of a small unquantized checkpoint, in plain autograd: what an adapter is measured against.

Every weight trains in float32; nothing here is tuned for speed or memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fedlora.base.checkpoint import Checkpoint, find_checkpoint
from fedlora.base.pack import CONFIG, EMBEDDED, MANIFEST, WEIGHTS, with_special_tokens_of
from fedlora.base.packing import TOOL_TEMPLATE, copy_text, copy_texts
from fedlora.config.run import RunConfig
from fedlora.data.datasets import find_dataset
from fedlora.errors import ConfigError, DataError
from fedlora.family import decoder_shape
from fedlora.files.atomic import whole_directory
from fedlora.files.tensor_dictionary import write_tensors
from torch import Tensor

from fedlora_client.data.windows import IGNORED, Windows, parts, read_windows
from fedlora_client.decoder.dense_decoder import dense_logits
from fedlora_client.training.learning_rate import learning_rate, with_epochs
from fedlora_client.training.training import batches

_MICRO_BATCH = 4


class FullTraining:
    """The weights of a checkpoint, and the windows to train them on."""

    def __init__(self, config: RunConfig, data: Path, epochs: float = 0) -> None:
        """`config.base` is a checkpoint's directory or a hub id. Raises FedloraError."""
        if config.base == EMBEDDED or (Path(config.base) / MANIFEST).is_file():
            raise ConfigError(
                f"--full trains the weights of an unquantized checkpoint, and {config.base} is a base pack; "
                "give --base the directory of a Hugging Face checkpoint, or a hub id"
            )
        self.directory = find_checkpoint(config.base)
        checkpoint = Checkpoint(self.directory)
        self._config = checkpoint.config
        names = {file.name for file in self.directory.iterdir()}
        self.shape = with_special_tokens_of(
            decoder_shape(checkpoint.config, str(self.directory / CONFIG)), self.directory, names
        )
        matrices = self.shape.linear_modules() | self.shape.vocabulary_modules()
        sizes = {f"{module}.weight": dims for module, dims in matrices.items()} | self.shape.float_tensors()
        for tensor, dims in sizes.items():
            checkpoint.check(tensor, dims)
        self.weights = {  # by their names in the checkpoint
            tensor: torch.from_numpy(np.array(checkpoint.rows(tensor, 0, dims[0]))).requires_grad_()
            for tensor, dims in sizes.items()
        }
        found = find_dataset("files")(config.data, {"data-path": str(data)})
        length = config.train.sequence_length
        self.train_windows, self.held_out = (
            read_windows(examples, self.directory, self.shape, length, f"{data}: {what}")
            for examples, what in ((found.train, "training text"), (found.held_out, "held-out text"))
        )
        settled = config.train.with_rate(self.shape, config.lora.method, all_weights=True)
        self.config = replace(config, train=with_epochs(settled, epochs, len(self.train_windows)))

    @property
    def parameters(self) -> int:
        """How many numbers train."""
        return sum(weight.numel() for weight in self.weights.values())

    def train(self, on_step: Callable[[int, float], None]) -> list[float]:
        """`config.train.steps` steps of AdamW; return their losses. Raises DataError where one is not finite."""
        config = self.config.train
        values = list(self.weights.values())
        optimizer = torch.optim.AdamW(values, lr=config.rate, weight_decay=config.weight_decay)
        order = batches(len(self.train_windows), config, np.random.default_rng([self.config.seed, 1]))
        losses: list[float] = []
        for step in range(config.steps):
            rows = next(order)
            learned = max(1, int(self.train_windows.learned_in_each[rows].sum()))
            total = 0.0
            for (part,) in parts([self.train_windows], _MICRO_BATCH, [rows]):
                loss = self._loss(part) / learned
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            if not math.isfinite(total):
                raise DataError(f"step {step + 1}: the loss is {total}; lower train.lr ({config.rate})")
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(values, config.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, config.steps)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
            on_step(step, total)
        return losses

    @torch.no_grad()
    def evaluate(self) -> float:
        """Nats per token of the held-out text."""
        total = sum(self._loss(part).item() for (part,) in parts([self.held_out], _MICRO_BATCH))
        return total / self.held_out.learned_tokens

    def write(self, output: Path, *, replace: bool) -> None:
        """The weights as a checkpoint like the one that was read, in float32."""
        arrays = {name: weight.detach().numpy() for name, weight in self.weights.items()}
        with whole_directory(output, replace=CONFIG if replace else None) as aside:
            copy_texts(self.directory, aside)
            if (self.directory / TOOL_TEMPLATE).exists():
                (aside / TOOL_TEMPLATE).parent.mkdir()
                copy_text(self.directory / TOOL_TEMPLATE, aside / TOOL_TEMPLATE)
            (aside / CONFIG).write_text(
                json.dumps(self._config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8"
            )
            write_tensors(aside / WEIGHTS, arrays, {"format": "pt"})

    def _loss(self, windows: Windows) -> Tensor:
        """The sum over all targets."""
        weights = {
            tensor.removesuffix(".weight"): weight + offset if (offset := self.shape.float_offset(tensor)) else weight
            for tensor, weight in self.weights.items()
        }
        logits = dense_logits(self.shape, weights, windows.inputs, windows.starts)
        return F.cross_entropy(logits.flatten(0, 1), windows.targets.flatten(), ignore_index=IGNORED, reduction="sum")
