"""Virtual tokens before each example of a batch: rows of their own, so that attention and positions need know nothing new.

    | a1 a2 a3 | b1 b2 | . .          a window of two examples, padded
    | v1 v2 a1 a2 a3 | v1 v2 b1 b2 | . .

Their outputs are read by nobody but the tokens after them in the same example, and nothing is learned at them. Of `prompt`
a row's input is an embedding that trains. Of `prefix` each layer's attention reads keys and values that train instead of
what the row would give, whose input is 0: no gradient goes through such a row.
"""

# S windows, T tokens of each, U tokens with the virtual ones, P virtual tokens, E examples, L layers, K key/value heads
# D head size, H hidden size

from __future__ import annotations

from dataclasses import dataclass

import torch
from fedlora.family import ModelShape
from torch import Tensor

from fedlora_client.data.windows import IGNORED, Windows


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a batch stand among those with virtual tokens."""

    starts: Tensor  # int64 [S, U]
    tokens: Tensor  # int64 [S T], each token's place in [S U]
    windows: Tensor  # int64 [E, 1], of each example
    places: Tensor  # int64 [E, P], of its virtual tokens in the window

    @property
    def virtual(self) -> Tensor:
        """int64 [E P], each virtual token's place in [S U]"""
        return (self.windows * self.starts.shape[1] + self.places).flatten()

    def spread(self, values: Tensor, fill: float = 0) -> Tensor:
        """values [S, T] as [S, U], `fill` where no token is"""
        out = torch.full((self.starts.numel(),), fill, dtype=values.dtype, device=values.device)
        out[self.tokens] = values.flatten()
        return out.view(self.starts.shape)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Embeddings, float32 [P, H]."""

    values: Tensor
    gradients: Tensor

    @property
    def count(self) -> int:
        """P"""
        return len(self.values)

    def put(self, out: Tensor, layout: Layout) -> None:
        """out [S U, H]: the inputs of the virtual rows"""
        out[layout.virtual] = self.values.to(out.dtype).repeat(len(layout.places), 1)

    def add_gradients(self, gradient: Tensor, layout: Layout) -> None:
        """gradient [S U, H], in the inputs"""
        self.gradients.add_(gradient[layout.virtual].float().view(-1, *self.values.shape).sum(0))


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values, float32 [P, 2 L, K, D]: of each layer its keys, then its values."""

    values: Tensor
    gradients: Tensor

    @property
    def count(self) -> int:
        """P"""
        return len(self.values)

    def put(self, out: Tensor, layout: Layout) -> None:
        """out [S U, H]: the inputs of the virtual rows, which nobody reads"""
        out[layout.virtual] = 0

    def put_heads(self, layer: int, keys: Tensor, values: Tensor, layout: Layout) -> None:
        """keys, values [S, K, U, D]: those of the virtual rows"""
        for kind, heads in enumerate((keys, values)):
            heads[layout.windows, :, layout.places] = self.values[:, 2 * layer + kind].to(heads.dtype)

    def take_gradients(self, layer: int, keys: Tensor, values: Tensor, layout: Layout) -> None:
        """Add the gradients in keys and values [S, K, U, D] of the virtual rows, and leave 0 there."""
        for kind, heads in enumerate((keys, values)):
            self.gradients[:, 2 * layer + kind].add_(heads[layout.windows, :, layout.places].float().sum(0))
            heads[layout.windows, :, layout.places] = 0


Virtual = Prompt | Prefix


def laid_out(starts: Tensor, count: int, learned: Tensor | None = None) -> Layout:
    """The layout with `count` virtual tokens before each example; starts int64 [S, T], learned bool [S, T].

    What is one token, not the window's first, and is not learned from, is padding, and gets none.
    """
    sequences, length = starts.shape
    begins = _begins(starts, learned)
    places = torch.arange(length, device=starts.device) + count * begins.cumsum(1)  # [S, T]
    total = length + count * int(begins.sum(1).max())
    windows, firsts = begins.nonzero(as_tuple=True)  # [E] each
    before = places[windows, firsts, None] - count + torch.arange(count, device=starts.device)  # [E, P]
    new_starts = torch.arange(total, device=starts.device).repeat(sequences, 1)
    new_starts.scatter_(1, places, places.gather(1, starts) - count * begins.gather(1, starts).long())
    new_starts[windows[:, None], before] = before[:, :1]
    tokens = (places + total * torch.arange(sequences, device=starts.device)[:, None]).flatten()
    return Layout(new_starts, tokens, windows[:, None], before)


def longest(windows: Windows, count: int) -> int:
    """The most tokens of a window with `count` virtual tokens before each of its examples."""
    length = windows.inputs.shape[1]
    return length + count * int(_begins(windows.starts, windows.targets != IGNORED).sum(1).max()) if count else length


def virtual_of(values: Tensor, gradients: Tensor, method: str, model: ModelShape) -> Virtual:
    """What trains, [P, W], as what its kind is."""
    if method == "prompt":
        return Prompt(values, gradients)
    shape = (len(values), 2 * model.num_layers, -1, model.head_dim)
    return Prefix(values.view(shape), gradients.view(shape))


def _begins(starts: Tensor, learned: Tensor | None) -> Tensor:
    """bool [S, T], where an example begins that is no padding"""
    places = torch.arange(starts.shape[1], device=starts.device)
    is_start, is_text = starts == places, places == 0
    goes_on = torch.zeros_like(is_start)
    goes_on[:, :-1] = starts[:, 1:] == places[:-1]
    return is_start & (goes_on | is_text | (learned if learned is not None else torch.zeros_like(is_start)))
