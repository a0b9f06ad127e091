"""The base pack: one model, quantized once, in one directory that everybody maps.

    base.json           what the pack is, the sha256 of every other file, and the fingerprint over all of it
    config.json         the model's own, and its tokenizer files
    embedding.json      where an encoder's checkpoint says how a text becomes a vector
    model.safetensors   NAME.qweight, NAME.scales, NAME.zeros of each matrix; norms and biases by their own names

The fingerprint names the base: adapters, updates and graphs carry it. Files that others put into the directory (an
exported graph) are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.base.quantize import Quantization, QuantizedMatrix
from fedlora.base.scales import ScaleRule
from fedlora.base.special_tokens import TOKENIZER as TOKENIZER
from fedlora.base.special_tokens import read_special_tokens, with_special_tokens
from fedlora.errors import CheckpointError, ConfigError, PackError, TensorFileError
from fedlora.family import DecoderShape, EncoderShape, ModelShape, model_shape
from fedlora.family.text_embedding import TextEmbedding
from fedlora.files.documents import read_object
from fedlora.files.file_kind import kind_of
from fedlora.files.tensor_file import MAX_HEADER_BYTES, TensorFile
from fedlora.nearest import hint

FORMAT = "fedlora-base"
VERSION = 2
MANIFEST, CONFIG, WEIGHTS = "base.json", "config.json", "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
EMBEDDING_STEPS = "embedding.json"  # of an encoder: how a text becomes a vector, where its checkpoint says it
MAX_TEXT_BYTES = 1 << 26  # of a tokenizer, a configuration, a template; the largest known has 35 MB
EMBEDDED = "nano"  # the base that ships with fedlora


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePack:
    """An opened, verified pack. Its arrays are views of the mapped file."""

    directory: Path
    source: str
    fingerprint: str
    quantization: Quantization
    model: ModelShape
    weights: TensorFile
    scales: str | None = None  # the rule that found them, where the manifest tells it
    revision: str | None = None  # the commit of the hub that it was packed from, where it was

    def matrix(self, module: str) -> QuantizedMatrix:
        """The stored weight of a linear module, the embedding or the head."""
        zeros = f"{module}.zeros"
        bits = self.bits(module)
        return QuantizedMatrix(
            qweight=self.weights.array(f"{module}.qweight"),
            scales=self.weights.array(f"{module}.scales"),
            zeros=self.weights.array(zeros) if zeros in self.weights.entries else None,
            in_features=self.in_features(module),
            bits=bits,
        )

    @property
    def shape(self) -> DecoderShape:
        """The model, for whoever needs a decoder. Raises PackError where it is an encoder."""
        if not isinstance(self.model, DecoderShape):
            raise PackError(
                f"{self.directory}: an encoder ({self.model.model_type}); this needs a model that generates"
            )
        return self.model

    def norm(self, module: str) -> NDArray[np.float32]:
        """The weight of a norm, a vector."""
        return self.floats(f"{module}.weight")

    def floats(self, tensor: str) -> NDArray[np.float32]:
        """A tensor that is stored in float32."""
        return self.weights.float32(tensor)

    def bits(self, module: str) -> int:
        vocabulary = module in self.model.vocabulary_modules()
        return self.quantization.embedding_bits if vocabulary else self.quantization.bits

    def in_features(self, module: str) -> int:
        return (self.model.vocabulary_modules() | self.model.linear_modules())[module][1]


def find_pack(base: str | Path) -> Path:
    """The directory of a pack; the name `nano` stands for the one that ships with fedlora."""
    if str(base) == EMBEDDED:
        return Path(str(files("fedlora") / "nano"))
    return Path(base)


def open_pack(base: str | Path) -> BasePack:
    """Verify every byte of a pack, map it, and return it. Raises PackError."""
    directory = find_pack(base)
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        if name != WEIGHTS:
            _verify(directory / name, expected, MAX_TEXT_BYTES)
    try:
        config = read_object(directory / CONFIG, PackError, "a model's config.json")
        quantization = Quantization(**manifest["quantization"])
        model = _completed(model_shape(config, str(directory / CONFIG)), directory, manifest["files"])
        expected_shapes = tensor_shapes(model, quantization)
        _verify(directory / WEIGHTS, manifest["files"][WEIGHTS], _largest_file(expected_shapes))
        weights = TensorFile(directory / WEIGHTS)
        pack = BasePack(
            directory=directory,
            source=manifest["source"],
            fingerprint=manifest["fingerprint"],
            quantization=quantization,
            model=model,
            weights=weights,
            scales=manifest.get("scales"),
            revision=manifest.get("revision"),
        )
    except KeyError as error:
        raise PackError(f"{directory / MANIFEST}: {error.args[0]} is missing; pack the model again") from None
    except (TensorFileError, CheckpointError, ConfigError, TypeError, ValueError) as error:
        raise PackError(f"{directory}: not a sound base pack: {error}; pack the model again") from None
    got = {name: (entry.dtype, entry.shape) for name, entry in weights.entries.items()}
    if got != expected_shapes:
        wrong = sorted(set(got.items()) ^ set(expected_shapes.items()))[0][0]
        raise PackError(
            f"{weights.path}: {wrong}: expected {expected_shapes.get(wrong, 'no such tensor')}, "
            f"got {got.get(wrong, 'no such tensor')}; pack the model again"
        )
    return pack


def _completed(model: ModelShape, directory: Path, listed: Collection[str]) -> ModelShape:
    """The model of config.json, with what other files of the pack say of it."""
    if not isinstance(model, EncoderShape):
        return with_special_tokens_of(model, directory, listed)
    if EMBEDDING_STEPS not in listed or model.labels:
        return model
    steps = TextEmbedding.from_object(
        read_object(directory / EMBEDDING_STEPS, PackError, "how a text becomes a vector")
    )
    steps.check_fits(model.hidden_size, model.max_positions)
    return replace(model, embedding=steps)


def with_special_tokens_of(model: DecoderShape, directory: Path, names: Collection[str]) -> DecoderShape:
    """The model, whose texts begin and end as the tokenizer in `directory` has it; of its files, `names` belong to it."""
    return with_special_tokens(with_all_ends(model, directory, names), read_special_tokens(directory, names))


def with_all_ends(model: DecoderShape, directory: Path, names: Collection[str]) -> DecoderShape:
    """The model, which ends a text at the tokens of generation_config.json too: a chat model's often stand there alone."""
    if GENERATION_CONFIG not in names:
        return model
    config = read_object(directory / GENERATION_CONFIG, PackError, "a model's generation_config.json")
    ends = config.get("eos_token_id")
    more = [token for token in (ends if isinstance(ends, list) else [ends]) if type(token) is int]
    known = dict.fromkeys((*model.eos_token_ids, *(token for token in more if 0 <= token < model.vocab_size)))
    return replace(model, eos_token_ids=tuple(known))


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read base.json and check its fingerprint. Raises PackError."""
    path = directory / MANIFEST
    if not path.is_file():
        raise PackError(f"{directory}: no {MANIFEST}: not a base pack{_what_else(directory)}")
    manifest = read_object(path, PackError, "the manifest of a base pack")
    if manifest.get("format") != FORMAT:
        raise PackError(f"{path}: not the manifest of a base pack: it lacks format = {FORMAT!r}; pack the model again")
    if manifest.get("version") != VERSION:
        raise PackError(f"{path}: version {manifest.get('version')!r} of the format; this fedlora reads {VERSION}")
    expected = fingerprint_of(manifest)
    if manifest.get("fingerprint") != expected:
        raise PackError(
            f"{path}: fingerprint {manifest.get('fingerprint')} does not match the manifest ({expected}); "
            "the file was changed after packing: pack the model again"
        )
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not {CONFIG, WEIGHTS, TOKENIZER} <= set(listed):
        raise PackError(f"{path}: files must list {CONFIG}, {WEIGHTS} and {TOKENIZER}; pack the model again")
    if any(Path(name).name != name or not name.isprintable() for name in listed):
        raise PackError(f"{path}: a file outside the pack is listed; the pack cannot be trusted")
    return manifest


def _what_else(directory: Path) -> str:
    """What lies where a pack was expected, and how one is made: into a directory that is not there yet."""
    if directory.is_file():
        found = kind_of(directory)
        return f", but {'a file' if found is None else found.name}; expected the directory that fedlora pack made"
    if (directory / "adapter_config.json").is_file():
        return ", but an adapter of PEFT; expected the base that it was trained on, as fedlora pack made it"
    if (directory / CONFIG).is_file():
        return f", but a checkpoint; make one of it with: fedlora pack {directory} -o {directory.name or 'base'}-pack"
    if directory.exists():
        return "; make one with: fedlora pack SOURCE -o OTHER"
    near = hint(str(directory), (EMBEDDED,), "")
    return f"; {near}{' ' if near else ''}make one with: fedlora pack SOURCE -o {directory}"


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """sha256 over the manifest, in canonical JSON, without its fingerprint, the name and the commit of the source, and the
    rule of the scales: the same weights and texts are the same base, wherever they were packed from and however their
    scales were found."""
    content = {
        key: value for key, value in manifest.items() if key not in ("fingerprint", "source", "revision", "scales")
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_text(
    source: str, quantization: Quantization, scale_rule: ScaleRule, directory: Path, revision: str | None = None
) -> str:
    """The base.json of the files in `directory`."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        **({"revision": revision} if revision else {}),
        "quantization": asdict(quantization),
        "scales": scale_rule,
        "files": {file.name: file_digest(file) for file in sorted(directory.iterdir())},
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    return json.dumps(manifest, indent=2) + "\n"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_shapes(model: ModelShape, quantization: Quantization) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{tensor: (dtype, shape)} of a pack's weights file, in the order of the file.

    Matrices that read the same input lie side by side, codes with codes and scales with scales: a graph may take them for
    one. All sizes are multiples of 4 bytes but those of the zeros, which come last: every tensor is aligned for its dtype.
    """
    result: dict[str, tuple[str, tuple[int, ...]]] = {}
    zeros: dict[str, tuple[str, tuple[int, ...]]] = {}
    block = quantization.block_size
    groups: list[tuple[tuple[str, ...], int]] = [
        *(((module,), quantization.embedding_bits) for module in model.vocabulary_modules()),
        *((group, quantization.bits) for group in model.linear_groups()),
    ]
    matrices = model.vocabulary_modules() | model.linear_modules()
    for group, bits in groups:
        sizes = {module: (matrices[module][0], -(-matrices[module][1] // block)) for module in group}
        for module, (rows, blocks) in sizes.items():
            result[f"{module}.qweight"] = ("U8", (rows, blocks, block * bits // 8))
        for module, size in sizes.items():
            result[f"{module}.scales"] = ("F32", size)
        if not quantization.symmetric:
            zeros |= {f"{m}.zeros": ("U8", (rows, -(-blocks * bits // 8))) for m, (rows, blocks) in sizes.items()}
    return result | {tensor: ("F32", size) for tensor, size in model.float_tensors().items()} | zeros


def _largest_file(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """What the file of these tensors has at most, in bytes."""
    sizes = {"U8": 1, "F32": 4}
    return MAX_HEADER_BYTES + 8 + sum(sizes[dtype] * math.prod(shape) for dtype, shape in shapes.values())


def _verify(path: Path, expected: str, max_bytes: int) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise PackError(f"{path}: no such file; copy the pack again")
    try:
        size = path.stat().st_size
        if size > max_bytes:  # a file with holes takes no room on the disk, and for ever to read
            raise PackError(f"{path}: {size} bytes; expected at most {max_bytes}: copy the pack again")
        got = file_digest(path)
    except OSError as error:
        raise PackError(f"{path}: cannot be read: {error.strerror}; copy the pack again") from None
    if got != expected:
        raise PackError(f"{path}: sha256 is {got}, base.json says {expected}; the file is damaged: copy the pack again")
