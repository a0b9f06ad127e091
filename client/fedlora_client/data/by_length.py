"""Texts of like length together: what a batch of an encoder computes for is the longest of its texts."""

# M windows of T tokens, each a text that is padded at its end

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fedlora_client.data.windows import Windows


def parts_by_length(windows: Windows, tokens: int) -> Iterator[Tensor]:
    """The numbers of all windows, the shortest texts first, as many at a time as fill `tokens` with their padding.

    A text that is longer than `tokens` comes by itself.
    """
    lengths = (windows.starts == 0).sum(1)
    order = lengths.argsort(stable=True)
    begin = 0
    for end in range(1, len(order) + 1):
        longest = int(lengths[order[end]]) if end < len(order) else 0  # of the part, were it to go on
        if end == len(order) or (end + 1 - begin) * longest > tokens:
            yield order[begin:end]
            begin = end
