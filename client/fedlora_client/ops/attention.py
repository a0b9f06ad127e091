"""Causal grouped-query attention within examples, forward and backward, a block of queries at a time.

    weights = softmax(cap(scale q k^T))     over the keys from the first that the query sees to the query
    mixed = weights v                       cap(z) = c tanh(z / c), or z

The first key is the first of the example, or a later one where the layer has a window. The weights are never kept: the
backward computes them again. The G query heads that share a key head are one longer matrix, so keys and values are not
copied.
"""

# S sequences, T tokens of each, Q query heads, K key/value heads, G = Q / K, D head size
# T' queries of a block, P keys up to its last query

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedlora_client.ops.ops import Ops
from fedlora_client.ops.workspace import Workspace

QUERY_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a product of a query and a key becomes a score."""

    scale: float
    cap: float = 0.0  # 0: none


class Heads(NamedTuple):
    """q [S, Q, T, D], k and v [S, K, T, D], q and k rotated."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend(
    heads: Heads,
    starts: Tensor,  # int64 [S, T], the first key that each query sees
    out: Tensor,  # [N, Q D], rows of any stride
    scores: Scores,
    ops: Ops,
    space: Workspace,
) -> Tensor | None:
    """out = mixed, as rows. Return the weights where one block has them all: they hold until the next call."""
    values, weights = heads.v.flatten(0, 1), None
    for first, weights, _ in _blocks(heads, starts, scores, ops, space):
        mixed = space.get("attention.mixed", len(values), weights.shape[1], heads.q.shape[3])
        torch.bmm(weights, values[:, : weights.shape[2]], out=mixed)
        _rows(out, heads, first, weights.shape[2]).copy_(_as_heads(mixed, heads))
    return weights if heads.q.shape[2] <= QUERY_BLOCK else None


def attend_backward(
    heads: Heads,
    starts: Tensor,
    gradient: Tensor,  # [N, Q D], in `mixed`
    out: Heads,  # the gradients in q, k and v
    scores: Scores,
    ops: Ops,
    space: Workspace,
    weights: Tensor | None = None,  # of `attend`, where they still hold
) -> None:
    """out = the gradients in the heads"""
    keys, values = heads.k.flatten(0, 1), heads.v.flatten(0, 1)
    d_keys, d_values = out.k.flatten(0, 1), out.v.flatten(0, 1)
    blocks = (
        _blocks(heads, starts, scores, ops, space)
        if weights is None
        else [(0, weights, _queries(heads, 0, len(starts[0])))]
    )
    for first, weights, queries in blocks:
        last = weights.shape[2]
        upstream = space.get("attention.upstream", *queries.shape)
        _as_heads(upstream, heads).copy_(_rows(gradient, heads, first, last))
        _add(d_values, weights.transpose(1, 2), upstream, last, heads)
        products = space.get("attention.gradient", *weights.shape)
        torch.bmm(upstream, values[:, :last].transpose(1, 2), out=products)
        by_head = (len(heads.q), heads.q.shape[1], last - first, last)
        scale = scores.cap or scores.scale
        ops.softmax_backward(weights.view(by_head), products.view(by_head), starts, first, scale)
        if scores.cap:
            slope = _capped(weights, space).square_().neg_().add_(1)  # of tanh
            products.mul_(slope).mul_(scores.scale / scores.cap)
        d_queries = torch.bmm(products, keys[:, :last], out=upstream)
        out.q[:, :, first:last].copy_(_as_heads(d_queries, heads).flatten(1, 2))
        _add(d_keys, products.transpose(1, 2), queries, last, heads)


def _blocks(
    heads: Heads, starts: Tensor, scores: Scores, ops: Ops, space: Workspace
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first query, weights [S K, G T', P], q [S K, G T', D]) of each block, from the last, which sees every key."""
    sequences, count, length, _ = heads.q.shape
    keys = heads.k.flatten(0, 1)
    for first in reversed(range(0, length, QUERY_BLOCK)):
        last = min(first + QUERY_BLOCK, length)
        queries = _queries(heads, first, last)
        weights = space.get("attention.weights", len(queries), queries.shape[1], last)
        torch.bmm(queries, keys[:, :last].transpose(1, 2), out=weights)
        if scores.cap:
            _capped(weights, space).copy_(weights.mul_(scores.scale / scores.cap).tanh_())
        by_head = (sequences, count, last - first, last)
        ops.softmax(weights.view(by_head), starts, first, scores.cap or scores.scale)
        yield first, weights, queries


def _queries(heads: Heads, first: int, last: int) -> Tensor:
    """[S K, G T', D]"""
    return heads.q[:, :, first:last].reshape(len(heads.q) * heads.k.shape[1], -1, heads.q.shape[3])


def _capped(weights: Tensor, space: Workspace) -> Tensor:
    """Where tanh(scale q k^T / c) of a block is kept, as long as its weights are."""
    return space.get("attention.capped", *weights.shape)


def _add(total: Tensor, left: Tensor, right: Tensor, last: int, heads: Heads) -> None:
    """total[:, :last] += left @ right; the first block to come, which has every key, begins the sum."""
    if last == heads.q.shape[2]:
        torch.bmm(left, right, out=total)
    else:
        total[:, :last] += torch.bmm(left, right)


def _as_heads(block: Tensor, heads: Heads) -> Tensor:
    """[S K, G T', D] as [S, K, G, T', D]"""
    sequences, count, _, size = heads.q.shape
    kv_heads = heads.k.shape[1]
    return block.view(sequences, kv_heads, count // kv_heads, -1, size)


def _rows(rows: Tensor, heads: Heads, first: int, last: int) -> Tensor:
    """Rows [N, Q D] as [S, K, G, T', D]: those of the queries of a block."""
    sequences, count, length, size = heads.q.shape
    kv_heads = heads.k.shape[1]
    apart = rows.stride(0)
    shape = (sequences, kv_heads, count // kv_heads, last - first, size)
    strides = (length * apart, count // kv_heads * size, size, apart, 1)
    return rows.as_strided(shape, strides, rows.storage_offset() + first * apart)
