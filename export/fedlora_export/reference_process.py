"""python -m fedlora_export.reference_process PACK OUTPUT: the trainer's logits in a process of its own, as an .npz file.

The file is empty of arrays where the client is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from fedlora.pack import open_pack

from fedlora_export.torch_logits import computed_logits


def main(pack: str, output: str) -> None:
    expected = computed_logits(open_pack(pack))
    arrays = {} if expected is None else {"base": expected.base, "first": expected.rows[0], "second": expected.rows[1]}
    with Path(output).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
