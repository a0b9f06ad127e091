"""What the files of a release are called, and what its name and its paths may be.

    adapter/                        the adapter, in PEFT's format
    compat.onnx_adapter (and .json) for the graph of a profile; one for each that was asked for
    README.md                       the model card, as the hub has it
    bom.cdx.json                    CycloneDX
    release.json                    the manifest of all of these, in a signed envelope (DSSE)
    model.sig                       where a key for it was given: OpenSSF model signing, over all the others

Names are ASCII: letters of other scripts that look alike are another name's, and are refused.
"""

from __future__ import annotations

import re

from fedlora.errors import ReleaseError

ENVELOPE, BUNDLE = "release.json", "model.sig"  # what vouches for the other files
ADAPTER, CARD, BOM = "adapter", "README.md", "bom.cdx.json"
WEIGHTS_PATH = f"{ADAPTER}/adapter_model.safetensors"  # what travels as a difference
UNLISTED = (ENVELOPE, BUNDLE)
MAX_FILES = 64
MAX_FILE_BYTES = 8 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}[A-Za-z0-9]|[A-Za-z0-9]")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_name(name: str) -> str:
    """The name of a release. Raises ReleaseError unless it is like `billing-v2`: 1 to 64 letters, digits and `. _ -`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ReleaseError(
            f"a release cannot be called {name!a:.140}; expected 1 to 64 of A-Z a-z 0-9 . _ -, which begins and ends "
            "with a letter or a digit"
        )
    return name


def check_path(path: str) -> str:
    """The path of a file in a release. Raises ReleaseError for one that is absolute, leaves the folder, or is not plain."""
    parts = path.split("/") if isinstance(path, str) else []
    if not 1 <= len(parts) <= 2 or not all(_COMPONENT.fullmatch(part) and ".." not in part for part in parts):
        raise ReleaseError(
            f"files: {path!a:.140}; expected a path within the release of at most two names of A-Z a-z 0-9 _ . -"
        )
    if path in UNLISTED:
        raise ReleaseError(f"files: {path} vouches for the others; expected it not to be listed")
    return path


def onnx_adapter(profile: str) -> str:
    """The file for the graph of a profile."""
    return f"{profile}.onnx_adapter"
