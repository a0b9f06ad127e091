"""Where the texts of a batch end."""

# S texts, T tokens of the longest

from __future__ import annotations

import torch
from fedlora.errors import DataError
from torch import Tensor

_SHOWN = 40  # numbers of a row, in an error


def check_padding(
    mask: Tensor,  # [S, T], 1 or True where there is text
) -> None:
    """Raise DataError unless each row of the mask is 1s, at least one, then 0s."""
    length = mask.shape[1]
    ends = (mask == 1).sum(1, keepdim=True)
    wrong = (mask != (torch.arange(length, device=mask.device) < ends)).any(1) | (ends[:, 0] == 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        found = " ".join(map(str, mask[row, :_SHOWN].int().tolist())) + (" ..." if length > _SHOWN else "")
        raise DataError(
            f"text {row + 1} of {len(mask)}: expected a mask of 1s, at least one, then 0s, got {found}; pad each text at "
            "its end"
        )
