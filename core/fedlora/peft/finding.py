"""Where an adapter is: a local path, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedlora.errors import AdapterError, MissingExtraError
from fedlora.files.hub import HubError, download, split_revision
from fedlora.nearest import check_there
from fedlora.peft.configuration import MAX_CONFIG_BYTES
from fedlora.peft.layout import COMPANIONS, CONFIG, WEIGHTS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,128})?", re.ASCII)
MAX_ADAPTER_BYTES, _MAX_COMPANION_BYTES = 8 << 30, 16 << 20


def find_adapter(source: str | Path) -> Path:
    """The path of `source`: what is there is for its reader to see; a hub id, such as someone/some-lora, is downloaded, of
    the commit that main is or, as someone/some-lora@REVISION, of another.

    Raises AdapterError where the hub does not give it, MissingExtraError without the package that asks it.
    """
    if not _is_hub_id(source):
        return Path(source)
    hub_id, revision = split_revision(str(source))
    try:
        return download(hub_id, [CONFIG, WEIGHTS, *COMPANIONS], revision, _most_bytes)
    except ImportError:
        raise MissingExtraError(
            f"{source}: no such file or directory here, and a hub id needs huggingface_hub: pip install 'fedlora[hub]'"
        ) from None
    except HubError as error:
        raise AdapterError(
            f"{source}: no such file or directory here, and the hub does not give it: {error}; name a "
            "PEFT directory or a .onnx_adapter file, or check the id, the revision and the network"
        ) from None


def _most_bytes(name: str) -> int | None:
    return {CONFIG: MAX_CONFIG_BYTES, WEIGHTS: MAX_ADAPTER_BYTES}.get(name, _MAX_COMPANION_BYTES)


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
