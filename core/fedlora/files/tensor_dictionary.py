"""A dictionary of tensors as a safetensors file, by the format's own library."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fedlora.files.atomic import give_usual_mode

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` from where they lie, without a copy. Raises OSError where they cannot be written.

    The library puts more than one entry of `metadata` in another order each time: a file whose digest counts has at most
    one, or is written by `write_tensor_file`.
    """
    # The library reads memory as if it were dense.
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        save_file(dense, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        code = _SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    give_usual_mode(path)
