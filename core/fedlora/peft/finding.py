"""Where an adapter is: a local path, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedlora.errors import AdapterError, MissingExtraError
from fedlora.nearest import check_there
from fedlora.peft.layout import COMPANIONS, CONFIG, WEIGHTS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def find_adapter(source: str | Path) -> Path:
    """The path of `source`: what is there is for its reader to see; a hub id, such as someone/some-lora, is downloaded.

    Raises AdapterError where the hub does not give it, MissingExtraError without the package that asks it.
    """
    hub_id, local = str(source), Path(source)
    if not _is_hub_id(source):
        return local
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise MissingExtraError(
            f"{hub_id}: no such file or directory here, and a hub id needs huggingface_hub: pip install 'fedlora[hub]'"
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, WEIGHTS, *COMPANIONS]))
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"{hub_id}: no such file or directory here, and the hub does not give it: {reason}; name a "
            "PEFT directory or a .onnx_adapter file, or check the id and the network"
        ) from None


def check_adapter(source: str | Path, known: Iterable[str] = (), otherwise: str = "") -> None:
    """`check_there` for what may be a hub id, too: that is for `find_adapter` to look up."""
    if not _is_hub_id(source):
        check_there(source, known, otherwise)


def _is_hub_id(source: str | Path) -> bool:
    """Nobody who mistyped a path wants a download: what has a folder here, or is called a file, is none."""
    local = Path(source)
    if _HUB_ID.fullmatch(str(source)) is None or local.suffix == ".onnx_adapter":
        return False
    return not (local.exists() or local.parent.is_dir())
