"""What may lie in an exported folder: fedlora's own files, and those of onnxruntime-genai as fedlora writes them.

base.json and what it lists         the pack
X.onnx, X.onnx.json                 a graph and its manifest
X.onnx_adapter, X.onnx_adapter.json an adapter file and its manifest
genai_config.json                   for a graph that is there, byte for byte: it could name libraries to load
tokenizer_config.json               `{}`, where the pack lists none
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from fedlora.base.pack import CONFIG, MANIFEST, BasePack, with_all_ends
from fedlora.errors import AdapterError, FedloraError, GraphError, PackError
from fedlora.exported.profiles import PROFILES, ROW_PROFILES, Profile, graph_name
from fedlora.family import DecoderShape, ModelShape, model_shape
from fedlora.files.documents import read_object

from fedlora_export.genai import GENAI_CONFIG, TOKENIZER_CONFIG, genai_text

GRAPH, ADAPTER = ".onnx", ".onnx_adapter"
_OWNERS: dict[str, type[FedloraError]] = {GRAPH: GraphError, ADAPTER: AdapterError}  # of manifests
_MAX_BYTES = 1 << 16


def check_folder_files(base: BasePack, *, listed: Collection[str]) -> int:
    """The number of files in the pack's folder, of which it lists `listed`. Raises PackError, GraphError, AdapterError.

    What is within the pack, the graphs and the adapters is for others to check.
    """
    paths = sorted(base.directory.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise PackError(f"{path}: a link or a folder; expected files alone: remove it, or copy the file")
        if path.name == GENAI_CONFIG:
            _check_genai(path, base, listed)
        elif path.name in (MANIFEST, *listed) or path.suffix in _OWNERS:
            continue
        elif path.name == TOKENIZER_CONFIG:
            _check_tokenizer_config(path)
        else:
            _check_manifest(path)
    return len(paths)


def _check_genai(path: Path, base: BasePack, listed: Collection[str]) -> None:
    there = [profile for profile in PROFILES if (base.directory / graph_name(base.model, profile)).is_file()]
    text = _small(path)
    if not any(text == _genai_bytes(model, profile) for model in _models(base, listed) for profile in there):
        raise GraphError(
            f"{path}: not what fedlora writes for a graph that is here ({', '.join(there)}), and it may name libraries to "
            f"load; remove it, or write it again with: fedlora export {base.directory}"
        )


def _models(base: BasePack, listed: Collection[str]) -> Iterator[ModelShape]:
    """The base's model, and as it was described when its special tokens were taken from config.json alone."""
    yield base.model
    earlier = model_shape(read_object(base.directory / CONFIG, PackError, "a model's config.json"), str(base.directory))
    if isinstance(earlier, DecoderShape):
        yield with_all_ends(earlier, base.directory, listed)


def _genai_bytes(model: ModelShape, profile: Profile) -> bytes | None:
    """What genai_config.json holds for the graph of a profile; None where genai runs no such graph."""
    if profile in ROW_PROFILES or not isinstance(model, DecoderShape):
        return None
    return genai_text(model, profile).encode()


def _check_tokenizer_config(path: Path) -> None:
    if _small(path) not in (b"{}", b"{}\n"):
        raise PackError(
            f"{path}: {MANIFEST} does not list it; expected {{}} alone, as fedlora export writes it: remove it, or pack "
            "the model again with it"
        )


def _check_manifest(path: Path) -> None:
    """Raise unless the file is the manifest of a graph or an adapter that is there."""
    owner = path.with_suffix("")
    if path.suffix != ".json" or owner.suffix not in _OWNERS:
        raise PackError(
            f"{path}: not a file that fedlora writes; expected {MANIFEST} and what it lists, graphs (*{GRAPH}) and "
            f"adapters (*{ADAPTER}) with their manifests (*.json), {GENAI_CONFIG} and {TOKENIZER_CONFIG}: remove it"
        )
    if not owner.is_file():
        kind = _OWNERS[owner.suffix]
        raise kind(f"{path}: the manifest of {owner.name}, which is not there; copy both, or remove it")


def _small(path: Path) -> bytes:
    """The first bytes of a file, more than any that fedlora writes has."""
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)
