"""The files of a Hugging Face checkpoint: where its directory is, its configuration, and which files hold its weights.

Where they are not there, what lies in their place is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedlora.base.pack import CONFIG, MANIFEST, MAX_TEXT_BYTES, TOKENIZER, WEIGHTS
from fedlora.base.quantized import refuse_quantized
from fedlora.errors import CheckpointError, MissingExtraError
from fedlora.files.documents import read_object
from fedlora.files.file_kind import kind_of
from fedlora.files.hub import HubError, download, listing, split_revision
from fedlora.nearest import beside

_SINGLE, _INDEX = WEIGHTS, f"{WEIGHTS}.index.json"
_EXPECTED = f"expected one with {CONFIG} and {_SINGLE}"
_SAVE = (
    "AutoModel.from_pretrained(DIRECTORY).save_pretrained(OTHER), with the class that config.json names for AutoModel"
)
_HUB_TEXTS = ["*.json", "*.jinja", "README.md"]
_HUB_FILES = [*_HUB_TEXTS, "*.safetensors"]
_MANY = 1000  # entries of a directory that are looked at
# Weights of other formats: a pattern of the file's name, and what it is. The first that is there is told.
_OTHER_WEIGHTS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, remedy)
    for pattern, what, remedy in (
        (r".*\.gguf", "a GGUF file, the format of llama.cpp, quantized or reordered", "pack the unquantized checkpoint in "
         "the safetensors format that it was made from"),
        (r"adapter_model\.(safetensors|bin)", "an adapter of PEFT, not a model", "pack the model that it was trained on, "
         "or merge it: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(OTHER)"),
        (r"pytorch_model.*\.bin(\.index\.json)?", "weights as a PyTorch pickle, which runs code when it is read",
         f"save them as safetensors with transformers: {_SAVE}"),
        (r"model\..+\.safetensors(\.index\.json)?", "the weights of a variant", f"copy it to {_SINGLE}, or save the model "
         "without a variant"),
        (r".*-\d{5}-of-\d{5}\.safetensors", f"shards without {_INDEX}", f"copy {_INDEX} there too"),
        (r"(consolidated|params).*|.*\.pth", "weights in the format of the model's authors",
         "take the checkpoint in the format of transformers, or convert it with the script of transformers' model"),
        (r".*\.h5(\.index\.json)?", "weights of TensorFlow", f"save them with transformers 4: {_SAVE}"),
        (r"flax_model.*\.msgpack", "weights of Flax", f"save them with transformers 4: {_SAVE}"),
        (r".*\.onnx", "an ONNX graph", "pack the checkpoint that it was exported from"),
        (r".*\.safetensors", "a safetensors file under another name", f"name it {_SINGLE} if it holds the whole model"),
        (r".*\.(bin|pt|ckpt)", "weights as a PyTorch pickle, which runs code when it is read",
         "save them as safetensors with the library that wrote them"),
    )
)  # fmt: skip


def find_checkpoint(source: str, revision: str | None = None) -> Path:
    """The directory of `source`: a local path, or a hub id, which is downloaded (needs a network).

    `revision` is a branch, a tag or a commit of the hub, which may stand in the id too (ID@REVISION); main where none
    is told. Raises CheckpointError, MissingExtraError.
    """
    local = Path(source)
    if local.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source}: a local directory, which has no revision; leave --revision out")
        return local
    if local.is_file():
        raise CheckpointError(_file_instead(local))
    # A path cannot be a hub id, and nobody who mistyped a path wants a download.
    hub_id, told = split_revision(source)
    if local.exists() or hub_id.count("/") != 1 or source.startswith((".", "/", "~")):
        more = beside(source)
        raise CheckpointError(f"{source}: no such directory; {_EXPECTED}" + (f"; {more}" if more else ""))
    if told is not None and revision not in (None, told):
        raise CheckpointError(f"{source}: the revision {told} in the id, and {revision} beside it; leave one of them")
    return _from_hub(hub_id, revision or told)


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises CheckpointError; also where it is quantized already, by the method's name."""
    path = directory / CONFIG
    if (directory / MANIFEST).is_file():
        raise CheckpointError(
            f"{directory}: a base pack already, not a checkpoint; use it as it is, or pack what it was made from"
        )
    if not path.exists():
        raise CheckpointError(_no_config(directory))
    config = read_object(path, CheckpointError, "a model's config.json")
    refuse_quantized(directory, config)
    return config


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the tensors: one, or those of the index. Raises CheckpointError, which says what is there."""
    single, index = directory / _SINGLE, directory / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(_no_weights(str(directory), _names(directory)))
    weight_map = read_object(index, CheckpointError, "the index of a sharded checkpoint").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names; copy the checkpoint again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or "\0" in name or not (directory / name).is_file():
            raise CheckpointError(f"{index}: shard {name!r} is not a file of {directory}; copy it there")
    return [directory / name for name in names]


def no_tokenizer(directory: Path) -> CheckpointError:
    """What is said where there is no tokenizer.json."""
    slow = [
        name for name in ("tokenizer.model", "spiece.model", "vocab.txt", "vocab.json") if (directory / name).is_file()
    ]
    there = f" (there is {slow[0]}, of a slow one)" if slow else ""
    return CheckpointError(
        f"{directory}: no {TOKENIZER}{there}; save the model's fast tokenizer there: "
        f"AutoTokenizer.from_pretrained({'DIRECTORY' if slow else 'MODEL-ID'}).save_pretrained(DIRECTORY)"
    )


def _from_hub(source: str, revision: str | None) -> Path:
    """The snapshot of a model. One that is refused by its configuration or its files is refused before its weights come."""
    try:
        texts = download(source, _HUB_TEXTS, revision, _most_bytes)
        if (texts / CONFIG).is_file():
            read_config(texts)
        directory = download(source, _HUB_FILES, revision, _most_bytes)
        if not any(directory.rglob("*.safetensors")):
            raise CheckpointError(_no_weights(source, _names_on_hub(source, revision)))
    except ImportError:
        raise MissingExtraError(
            f"{source}: no such directory, and a hub id needs huggingface_hub; pip install 'fedlora[hub]'"
        ) from None
    except HubError as error:
        raise CheckpointError(
            f"{source}: no local directory, and the hub does not give it: {error}; "
            f"pass a directory with {CONFIG} and {_SINGLE}, or check the id, the revision and the network"
        ) from None
    return directory


def _most_bytes(name: str) -> int | None:
    return None if name.endswith(".safetensors") else MAX_TEXT_BYTES


def _names_on_hub(source: str, revision: str | None) -> list[str]:
    found = listing(source, revision)
    return list(found.sizes) if found else []


def _file_instead(path: Path) -> str:
    """What is said of a file where a directory was expected."""
    if path.suffix == ".safetensors":
        return f"{path}: a file; expected a directory with {CONFIG} and {_SINGLE}: pass {path.parent}"
    found = kind_of(path)
    if found is not None and not found.is_text:
        return found.instead_of(path, f"a directory with {CONFIG} and {_SINGLE}")
    return f"{path}: no such directory, but a file; {_EXPECTED}"


def _no_config(directory: Path) -> str:
    names = _names(directory)
    start = f"{directory / CONFIG}: cannot be read: No such file or directory"
    below = [name for name in names if (directory / name / CONFIG).is_file()]
    below += [f"snapshots/{entry.name}" for entry in _entries(directory / "snapshots") if (entry / CONFIG).is_file()]
    if below:
        shown = ", ".join(str(directory / name) for name in below[:3])
        return f"{start}; there is one below it: pass {shown}"
    for pattern, what, remedy in _OTHER_WEIGHTS:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            return f"{start}; {directory} holds {found[0]}, {what}; {remedy}"
    return f"{start}; expected a model's config.json, as save_pretrained of transformers writes it"


def _no_weights(where: str, names: Sequence[str]) -> str:
    start = f"{where}: no {_SINGLE} and no {_INDEX}"
    for pattern, what, remedy in _OTHER_WEIGHTS:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            return f"{start}, but {found[0]}, {what}; expected a checkpoint in the safetensors format: {remedy}"
    return f"{start}; expected a Hugging Face checkpoint in the safetensors format, as save_pretrained writes it"


def _names(directory: Path) -> list[str]:
    return [entry.name for entry in _entries(directory)]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())[:_MANY]
    except OSError:
        return []
