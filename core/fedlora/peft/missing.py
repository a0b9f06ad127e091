"""What stands where an adapter was expected, and what to do with it: the sentence for whoever named the wrong place."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from fedlora.errors import AdapterError
from fedlora.numbered import in_order, is_number
from fedlora.peft.layout import CONFIG, PICKLED, WEIGHTS

_STEP = "checkpoint-"  # of a Trainer's folder
_MOST = 1000  # entries of a folder that are looked at
_SHOWN = 5  # places in a message
_EXPECTED = f"expected a PEFT directory with {CONFIG} and {WEIGHTS}"


def check_is_there(directory: Path) -> None:
    """Raise AdapterError unless both files of a PEFT directory are there; it tells what is there in their place."""
    for name in (CONFIG, WEIGHTS):
        path = directory / name
        if path.is_symlink() and not path.exists():
            raise AdapterError(
                f"{path}: a link to {path.readlink()}, which is not there, as when a hub's cache is copied without what "
                f"its links show; copy the adapter with: cp -rL SOURCE {directory}"
            )
        if not path.exists():
            raise AdapterError(f"{path}: cannot be read: No such file or directory; {told_instead(directory)}")


def told_instead(place: Path) -> str:
    """What is at `place`, where no adapter is, and what to do; `expected ...` where nothing there tells."""
    try:
        if place.is_dir():
            return _in_folder(place, _names(place))
        return told_of_file(place) or f"{_EXPECTED}, or a .onnx_adapter file as fedlora export-adapter writes one"
    except OSError:  # it must not be looked at
        return _EXPECTED


def _in_folder(place: Path, names: list[str]) -> str:
    if PICKLED in names and CONFIG in names:
        return _pickled(place)
    within = [name for name in names if (place / name / CONFIG).is_file()]
    steps = (name for name in within if name.startswith(_STEP) and is_number(name.removeprefix(_STEP)))
    checkpoints = in_order(steps, lambda name: name.removeprefix(_STEP))
    if checkpoints:
        return f"a Trainer's folder, with {_listed(checkpoints)}: name {place / checkpoints[-1]}, the newest"
    if snapshots := _below(place, "snapshots", CONFIG):
        return f"the cache of a hub's repository, with {_listed(snapshots)}: name {place / 'snapshots' / snapshots[0]}"
    if within:
        return (
            f"PEFT keeps an adapter in a folder of its name, and here are {_listed(within)}: name {place / within[0]}"
        )
    if rounds := _below(place, "rounds", f"adapter/{CONFIG}"):
        return f"a run of fedlora, with an adapter for each round: name {place / 'rounds' / rounds[-1] / 'adapter'}"
    if "base.json" in names:
        return f"a base pack, not an adapter; {_EXPECTED}"
    files = [name for name in names if name.endswith(".onnx_adapter")]
    if files:
        return f"here are files of exported adapters, {_listed(files)}: name {place / files[0]}"
    if "config.json" in names and CONFIG not in names:
        return f"a whole model, not an adapter: pack it with fedlora pack {place} -o PACK, or name the adapter's own folder"
    if WEIGHTS in names or PICKLED in names:
        return f"{_EXPECTED}, as PEFT saves them together: copy {CONFIG} too"
    tensors = [name for name in names if name.endswith((".safetensors", ".npz", ".gguf"))]
    if tensors:
        return f"{_EXPECTED}, got {_listed(tensors)}, which PEFT does not load: save the adapter with PEFT"
    return _EXPECTED


def told_of_file(path: Path) -> str:
    """What a file is that is no adapter by itself, by its name; empty where that does not tell."""
    if not path.is_file():
        return ""
    if path.name in (CONFIG, WEIGHTS):
        return f"a file of a PEFT directory; name the directory: {path.parent}"
    if path.name == PICKLED:
        return _pickled(path.parent)
    if path.suffix in (".zip", ".gz", ".tgz", ".tar", ".xz", ".zst"):
        return "an archive; unpack it, and name the folder that it holds"
    if path.suffix == ".gguf":
        return f"a GGUF file, of llama.cpp; {_EXPECTED}, from which it was made"
    return ""


def _pickled(directory: Path) -> str:
    return (
        f"{PICKLED} is there, a pickle, which could run whatever it holds and is not read: convert it, where you trust it, "
        f'by running this in {directory}: python -c "import torch; from safetensors.torch import save_file; '
        f"t = torch.load('{PICKLED}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone().contiguous() for k, v in t.items()}}, '{WEIGHTS}', metadata={{'format': 'pt'}})\""
    )


def _below(place: Path, folder: str, file: str) -> list[str]:
    """The folders in `folder` that hold `file`, by name."""
    if not (place / folder).is_dir():
        return []
    return [name for name in _names(place / folder) if (place / folder / name / file).exists()]


def _names(folder: Path) -> list[str]:
    """What a message may name of a folder, in order."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in islice(entries, _MOST) if entry.name.isprintable())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
