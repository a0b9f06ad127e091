"""Turn a checkpoint into a base pack, a slice of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedlora.base.checkpoint import Checkpoint
from fedlora.base.checkpoint_files import find_checkpoint, no_tokenizer, read_config
from fedlora.base.pack import (
    CONFIG,
    EMBEDDING_STEPS,
    GENERATION_CONFIG,
    MANIFEST,
    MAX_TEXT_BYTES,
    TOKENIZER,
    WEIGHTS,
    manifest_text,
    tensor_shapes,
)
from fedlora.base.quantize import BLOCK_SIZES, Quantization, QuantizedMatrix, quantize
from fedlora.base.scales import SCALE_RULES, ScaleRule
from fedlora.base.tokenizer_file import check_tokenizer
from fedlora.base.tokenizer_trial import TokenizerEndsProcessError, try_tokenizer
from fedlora.errors import CheckpointError, ConfigError
from fedlora.family import EncoderShape, ModelShape, model_shape
from fedlora.family.text_embedding import TextEmbedding
from fedlora.files.atomic import whole_directory
from fedlora.files.bounded import read_bounded
from fedlora.files.documents import read_object
from fedlora.files.hub import commit_of, split_revision
from fedlora.files.tensor_file import Dtype, TensorPlan, write_tensor_file

_TOKENIZER_LIBRARY = "tokenizers"  # which core itself does not need
_SLICE_ELEMENTS = 1 << 20
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", GENERATION_CONFIG)

# The template of chats with tools: where it lies in a checkpoint, and its name in a pack, which has no folders.
TOOL_TEMPLATE, TOOL_TEMPLATE_OF_PACKS = "additional_chat_templates/tool_use.jinja", "tool_use.jinja"


def make_pack(
    source: str | Path,
    output: str | Path,
    quantization: Quantization,
    *,
    scale_rule: ScaleRule = "mse",
    revision: str | None = None,
    replace: bool = False,
    progress: Callable[[str], None] = lambda tensor: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Quantize the checkpoint `source` (a directory, or a hub id, at `revision`) into the pack `output`.

    `output` appears whole or not at all. Peak memory is one quantized tensor and one slice of rows. Calls `progress`
    with the name of each tensor before it is written, and `tell` with what was decided where the checkpoint's files
    contradict each other. Raises CheckpointError; ConfigError where `output` exists, or there is no such rule.
    """
    if scale_rule not in SCALE_RULES:
        raise ConfigError(f"scales must be {' or '.join(SCALE_RULES)}, got {scale_rule}")
    source, output = str(source), Path(output)
    directory = find_checkpoint(source, revision)
    name = directory.resolve().name if Path(source).is_dir() else split_revision(source)[0]
    commit = None if Path(source).is_dir() else commit_of(directory)
    checkpoint = Checkpoint(directory)
    shape = checkpoint.shape
    _check(checkpoint, shape, quantization)
    for note in checkpoint.notes:
        tell(f"{directory}: {note}")
    plans = [
        TensorPlan(name=name, dtype=cast(Dtype, dtype), shape=dims)
        for name, (dtype, dims) in tensor_shapes(shape, quantization).items()
    ]
    with whole_directory(output, replace=MANIFEST if replace else None) as aside:
        (aside / CONFIG).write_text(json.dumps(checkpoint.config, indent=2) + "\n", encoding="utf-8")
        copy_texts(directory, aside)
        if isinstance(shape, EncoderShape) and shape.embedding != TextEmbedding():
            (aside / EMBEDDING_STEPS).write_text(
                json.dumps(shape.embedding.to_object(), indent=2) + "\n", encoding="utf-8"
            )
        copy_text(directory / TOOL_TEMPLATE, aside / TOOL_TEMPLATE_OF_PACKS)
        pending: dict[str, NDArray[Any]] = {}  # scales and zeros, which follow their codes in the file

        def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
            progress(plan.name)
            module, kind = plan.name.rsplit(".", 1)
            if plan.name in shape.float_tensors():
                yield checkpoint.rows(plan.name, 0, plan.shape[0]) + np.float32(shape.float_offset(plan.name))
            elif kind == "qweight":
                bits = plan.shape[2] * 8 // quantization.block_size
                scales, zeros = [], []
                for part in _quantized_slices(checkpoint, module, plan.shape[0], bits, quantization, scale_rule):
                    yield part.qweight
                    scales.append(part.scales)
                    zeros += [] if part.zeros is None else [part.zeros]
                pending[f"{module}.scales"] = np.concatenate(scales)
                if zeros:
                    pending[f"{module}.zeros"] = np.concatenate(zeros)
            else:
                yield pending.pop(plan.name)

        write_tensor_file(aside / WEIGHTS, plans, fill)
        (aside / MANIFEST).write_text(manifest_text(name, quantization, scale_rule, aside, commit), encoding="utf-8")


def largest_block_size(source: str, revision: str | None = None) -> int:
    """The largest block that divides the hidden size of the checkpoint `source`: the fastest one. Raises CheckpointError.

    The smallest one where none divides it, which `make_pack` then refuses.
    """
    directory = find_checkpoint(source, revision)
    config = read_config(directory)
    hidden = model_shape(config, str(directory / CONFIG)).hidden_size
    return max((block for block in BLOCK_SIZES if hidden % block == 0), default=min(BLOCK_SIZES))


def default_bits(source: str, revision: str | None = None) -> int:
    """8 for an encoder, 4 for a decoder: docs/quantization.md measures what each loses. Raises CheckpointError."""
    directory = find_checkpoint(source, revision)
    shape = model_shape(read_config(directory), str(directory / CONFIG))
    return 8 if isinstance(shape, EncoderShape) else 4


def _quantized_slices(
    checkpoint: Checkpoint, module: str, rows: int, bits: int, quantization: Quantization, scale_rule: ScaleRule
) -> Iterator[QuantizedMatrix]:
    columns = checkpoint.columns(f"{module}.weight")
    step = max(1, _SLICE_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield quantize(
            checkpoint.rows(f"{module}.weight", start, min(start + step, rows)),
            bits=bits,
            block_size=quantization.block_size,
            symmetric=quantization.symmetric,
            scale_rule=scale_rule,
        )


def _check(checkpoint: Checkpoint, shape: ModelShape, quantization: Quantization) -> None:
    """Everything that can be refused is refused before the first byte is written."""
    _check_blocks(checkpoint.directory, shape.hidden_size, quantization.block_size)
    for module, dims in (shape.vocabulary_modules() | shape.linear_modules()).items():
        checkpoint.check(f"{module}.weight", dims)
    for tensor, size in shape.float_tensors().items():
        checkpoint.check(tensor, size)
    _check_tokenizer(checkpoint.directory)


def _check_blocks(directory: Path, hidden: int, block: int) -> None:
    """A graph reads rows of the embedding block by block: the blocks divide them."""
    if hidden % block == 0:
        return
    fitting = [size for size in BLOCK_SIZES if hidden % size == 0]
    if fitting:
        raise CheckpointError(
            f"{directory}: hidden_size {hidden} is not a multiple of the block size {block}; pass a smaller --block-size: "
            f"{' or '.join(map(str, fitting))}"
        )
    raise CheckpointError(
        f"{directory}: hidden_size {hidden} is a multiple of no block size ({', '.join(map(str, BLOCK_SIZES))}), and "
        f"fedlora cannot hold its embedding; take a model whose hidden size is a multiple of {min(BLOCK_SIZES)}"
    )


def _check_tokenizer(directory: Path) -> None:
    """Core has no tokenizer of its own; what is no JSON object with a model would pack, and fail wherever it is used."""
    path = directory / TOKENIZER
    if not path.exists():
        raise no_tokenizer(directory)
    content = read_object(path, CheckpointError, "the model's fast tokenizer", max_bytes=MAX_TEXT_BYTES)
    if isinstance(content.get("model"), dict):
        try:
            check_tokenizer(content)
            if find_spec(_TOKENIZER_LIBRARY):
                try_tokenizer(read_bounded(path, MAX_TEXT_BYTES), _TOKENIZER_LIBRARY)
        except (ValueError, OSError, TokenizerEndsProcessError) as problem:
            raise CheckpointError(f"{path}: {problem}; take the model's own tokenizer.json") from None
    else:
        raise CheckpointError(
            f"{path}: no tokenizer: it has no object `model`; save the model's fast tokenizer there: "
            "AutoTokenizer.from_pretrained(MODEL-ID).save_pretrained(DIRECTORY)"
        )


def copy_texts(source: Path, target: Path) -> None:
    """Copy the tokenizer and what else of a checkpoint's texts a model needs beside its configuration."""
    for name in (TOKENIZER, *_TOKENIZER_FILES):
        copy_text(source / name, target / name)


def copy_text(source: Path, target: Path) -> None:
    """Copy one of them, where it is there. Raises CheckpointError."""
    try:
        content = read_bounded(source, MAX_TEXT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error.strerror}; copy the file again") from None
    target.write_bytes(content)
