"""A Hugging Face checkpoint, one file or sharded, read tensor by tensor and row by row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.base.checkpoint_files import find_checkpoint, read_config, weight_files
from fedlora.base.pack import CONFIG
from fedlora.base.quantized import quantized_by, quantized_error
from fedlora.base.sentence_modules import MODULES, read_sentence_modules, sentence_root
from fedlora.base.tensor_names import alike, candidates, unwrapped
from fedlora.errors import CheckpointError, TensorFileError
from fedlora.family import EMBEDDING, HEAD, DecoderShape, EncoderShape, model_shape
from fedlora.files.tensor_file import TensorEntry, TensorFile, read_rows

__all__ = ["Checkpoint", "find_checkpoint"]

# A sharded giant's header may be larger than what is taken from a stranger's adapter.
_MAX_HEADER_BYTES = 1 << 26
_MAX_TENSORS = 1 << 17
_COMPARED_ELEMENTS = 1 << 20
_FLOATS = ("F32", "F16", "BF16")


class Checkpoint:
    """An opened checkpoint directory.

    `config` is its config.json, with what the weights contradict set right; `notes` says so, a sentence each.
    """

    def __init__(self, directory: Path) -> None:
        """Read the configuration and the headers of the weights. Raises CheckpointError."""
        self.directory = directory
        self.notes: list[str] = []
        self.config: dict[str, Any] = read_config(directory)
        self.shape = model_shape(self.config, str(directory / CONFIG))
        stored: dict[str, tuple[Path, TensorEntry]] = {}
        for file in weight_files(directory):
            stored |= {name: (file, entry) for name, entry in _entries(file).items()}
        self._tensors = self._without_wrappers(stored)
        self._prefix = self.shape.base_prefix
        self._settle_head()
        self._read_modules()

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the checkpoint holds tensor `name` with `shape`."""
        found = self._find(name)
        if found is None:
            raise self._refusal(f"tensor {name} is missing; {self._instead(name)}")
        got = found[1]
        if got.dtype not in _FLOATS:
            raise self._refusal(
                f"{name} has dtype {got.dtype}; expected F32, F16 or BF16: save the model in one of them, with "
                "model.to(torch.bfloat16).save_pretrained(OTHER)"
            )
        if got.shape != shape:
            raise self._refusal(
                f"{name} has shape {got.shape}; config.json implies {shape}: it belongs to other weights, or was edited"
            )

    def columns(self, name: str) -> int:
        """The length of a row."""
        return self._tensor(name)[1].shape[1]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor; raises CheckpointError where a value is not finite."""
        file, entry = self._tensor(name)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            array = read_rows(descriptor, entry, start, stop)
        finally:
            os.close(descriptor)
        if not np.isfinite(array).all():
            raise CheckpointError(f"{file}: {name} holds NaN or infinity in rows {start} to {stop}; it cannot be used")
        return array

    def _find(self, name: str) -> tuple[Path, TensorEntry] | None:
        found = next((other for other in candidates(name, self._prefix) if other in self._tensors), None)
        return self._tensors[found] if found is not None else None

    def _tensor(self, name: str) -> tuple[Path, TensorEntry]:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def _without_wrappers(self, stored: dict[str, tuple[Path, TensorEntry]]) -> dict[str, tuple[Path, TensorEntry]]:
        try:
            names, taken = unwrapped(stored)
        except ValueError as error:
            raise CheckpointError(f"{self.directory}: {error}, without _orig_mod.; save the model once") from None
        if taken:
            self.notes.append(f"{taken} is taken off the names of the tensors: a wrapper of torch wrote it")
        return {name: stored[before] for name, before in names.items()}

    def _read_modules(self) -> None:
        """What sentence-transformers does with the states of an encoder, where the checkpoint says it."""
        root = sentence_root(self.directory)
        if root is None:
            return
        if not isinstance(self.shape, EncoderShape) or self.shape.labels:
            does = "gives scores" if isinstance(self.shape, EncoderShape) else "generates text, and gives no embeddings"
            self.notes.append(f"{MODULES} of sentence-transformers is not used: the pack of this model {does}")
            return
        modules = read_sentence_modules(root, self.directory, self.shape)
        self.shape = replace(self.shape, embedding=modules.embedding)
        self.notes += modules.notes
        for number, file in enumerate(modules.dense_files):
            entries = _entries(file)
            for kind in ("weight", "bias"):
                if f"linear.{kind}" in entries:
                    self._tensors[f"dense.{number}.{kind}"] = (file, entries[f"linear.{kind}"])

    def _settle_head(self) -> None:
        """Where config.json says that the head is the embedding and the file has both, the file is believed.

        transformers does the same: it ties them where they are equal, and keeps both where they are not.
        """
        if not isinstance(self.shape, DecoderShape) or not self.shape.tie_word_embeddings:
            return
        embedding, head = (self._find(f"{module}.weight") for module in (EMBEDDING, HEAD))
        if head is None:
            return
        if embedding is None:  # the one that is there stands for both
            self._tensors[f"{EMBEDDING}.weight"] = head
            self.notes.append("the weights hold the head alone, which config.json ties to the embedding: it is both")
        elif not self._are_equal(embedding[1], head[1]):
            self.config["tie_word_embeddings"] = False
            self.shape = model_shape(self.config, str(self.directory / CONFIG))
            self.notes.append(
                "config.json says tie_word_embeddings, and lm_head.weight is another than the embedding: both are kept, as "
                "transformers does; the pack's config.json says false"
            )

    def _are_equal(self, embedding: TensorEntry, head: TensorEntry) -> bool:
        """Whether the head holds the numbers of the embedding."""
        if embedding.shape != head.shape:
            return False
        if {embedding.dtype, head.dtype} - set(_FLOATS) or len(head.shape) != 2:
            return True  # refused when the embedding is checked
        step = max(1, _COMPARED_ELEMENTS // max(head.shape[1], 1))
        for start in range(0, head.shape[0], step):
            stop = min(start + step, head.shape[0])
            of_embedding, of_head = (self.rows(f"{module}.weight", start, stop) for module in (EMBEDDING, HEAD))
            if not np.array_equal(of_embedding, of_head):
                return False
        return True

    def _refusal(self, problem: str) -> CheckpointError:
        """The weights do not fit the configuration: the tensors may show that another tool has quantized them."""
        method = quantized_by([entry for _, entry in self._tensors.values()])
        if method is not None:
            return quantized_error(self.directory, method, self.config)
        return CheckpointError(f"{self.directory}: {problem}")

    def _instead(self, name: str) -> str:
        """What the weights hold where `name` is missing, and what can be done."""
        names = list(self._tensors)
        if any(".lora_A." in other or ".base_layer." in other for other in names):
            return (
                "the weights are those of a model with an adapter of PEFT in it; save the model with "
                "merge_and_unload().save_pretrained(OTHER), or pack the model that the adapter was trained on"
            )
        if name == f"{HEAD}.weight":
            return (
                "config.json says tie_word_embeddings false, and transformers would begin with a random head; if this "
                "model's head is its embedding, set tie_word_embeddings to true in config.json"
            )
        other = alike(name, names)
        if other is not None:
            return f"the weights have {other}: save the inner model alone, so that its names begin as transformers' do"
        shown = ", ".join(names[:3]) or "no tensor"
        return (
            f"the weights hold {shown}{', ...' if len(names) > 3 else ''}; config.json of this checkpoint implies others: "
            "put the weights and the config.json of one model into the directory"
        )


def _entries(file: Path) -> Mapping[str, TensorEntry]:
    try:
        return TensorFile(file, max_header_bytes=_MAX_HEADER_BYTES, max_tensors=_MAX_TENSORS).entries
    except TensorFileError as error:
        raise CheckpointError(str(error)) from None
