"""python -m fedlora_export.checks.reference_process PACK OUTPUT [scaled]: the trainer's logits, from a process of its own,
as .npz; with `scaled` those of adapters that scale modules, too.

The file is empty of arrays where the client is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from fedlora.base.pack import open_pack

from fedlora_export.checks.torch_logits import OF_KIND, computed_logits


def main(pack: str, output: str, *more: str) -> None:
    expected = computed_logits(open_pack(pack), scaled="scaled" in more)
    arrays = {} if expected is None else {"base": expected.base, "first": expected.rows[0], "second": expected.rows[1]}
    if expected is not None and expected.headed is not None:
        arrays["headed"] = expected.headed
    if expected is not None:
        arrays |= {f"{OF_KIND}{name}": logits for name, logits in expected.scaled.items()}
    with Path(output).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
