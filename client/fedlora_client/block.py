"""One block of a Llama-family decoder, forward and backward, over packed weights.

h = x + o(attention(q(n), k(n), v(n)))        n = norm(x)
y = h + down(silu(gate(m)) * up(m))           m = norm(h)
"""

# S sequences, T tokens of each, N = S T rows, H hidden size, F intermediate size, D head size, R rank
# E extra columns of a linear module's input and of the gradient in its output: see `linear`

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedlora.family import LINEAR_MODULES, DecoderShape, layer_name
from torch import Tensor

from fedlora_client.attention import Heads, attend, attend_backward
from fedlora_client.linear import Linear
from fedlora_client.lora import Factors, LoraTensors
from fedlora_client.ops import Ops
from fedlora_client.packed import PackedMatrix
from fedlora_client.workspace import Workspace

# (what is masked, rows, columns) -> [N, I], times which the adapters there see their input; None: as it is
Dropout = Callable[[str, int, int], Tensor | None]
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
# The gradient in gate takes the place of down's input, whose last reader was the backward of down.
_PLACE = {"gate_proj": "down.input"}
_READERS = {"qkv": QKV, "o": ("o_proj",), "gate_up": GATE_UP, "down": ("down_proj",)}


@dataclass(frozen=True, slots=True)
class Batch:
    """What every block needs to know of a batch."""

    starts: Tensor  # int64 [S, T]
    turn: tuple[Tensor, Tensor]  # cos and sin of each row's position, float32 [N, D / 2]
    lora: LoraTensors | None
    dropout: Dropout


@dataclass(slots=True)
class Fresh:
    """What need not be computed again by a backward that follows at once: it holds until the next block's forward."""

    weights: Tensor | None  # of the attention
    normed: Tensor  # [N, H + E], the input of q, k and v
    normed_again: Tensor  # [N, H + E], the input of gate and up
    gated: Tensor  # [N, F + E], the input of down


@dataclass(slots=True)
class Activations:
    """What a forward leaves for the backward of its block."""

    heads: Heads
    mixed: Tensor  # [N, Q D + E], the input of o
    h: Tensor  # [N, H]
    gate: Tensor  # [N, F]
    up: Tensor  # [N, F]
    inner: dict[str, Tensor]  # {module: x A^T [C, N / C, R]}
    fresh: Fresh | None  # None where the activations are kept longer


class Block:
    """Frozen: any number of threads may share one, each with a workspace of its own."""

    def __init__(
        self,
        layer: int,
        shape: DecoderShape,
        matrices: Mapping[str, PackedMatrix],
        norms: Mapping[str, Tensor],
        ops: Ops,
    ) -> None:
        prefix = layer_name(layer)
        self._shape, self._ops = shape, ops
        full = {module.rsplit(".", 1)[-1]: module for module in matrices if module.startswith(f"{prefix}.")}
        self._linear = {name: Linear(full[name], matrices[full[name]], ops) for name in LINEAR_MODULES}
        self._norms = {
            "qkv": norms[f"{prefix}.input_layernorm"],
            "gate_up": norms[f"{prefix}.post_attention_layernorm"],
        }

    def forward(
        self,
        x: Tensor,  # [N, H]
        batch: Batch,
        space: Workspace,
        out: Tensor | None,  # [N, H]; None: only what the backward needs
        keep: Workspace | None = None,
    ) -> Activations:
        """out = y. What is returned holds until the next use of `keep`, by default of `space`."""
        own, inner = keep or space, dict[str, Tensor]()
        normed = self._normed("qkv", x, batch, space)
        heads = Heads(*(self._heads(name, normed, batch, own, space, inner) for name in QKV))
        mixed = self._input("o", own, batch)
        weights = attend(heads, batch.starts, mixed[:, : self._linear["o_proj"].in_features], self._ops, space)
        h = own.get("h", *x.shape)
        self._apply("o_proj", mixed, batch, space, inner, h, residual=x)
        again = self._normed("gate_up", h, batch, space)
        gate, up = (own.get(name, len(x), self._shape.intermediate_size) for name in ("gate", "up"))
        self._apply("gate_proj", again, batch, space, inner, gate)
        self._apply("up_proj", again, batch, space, inner, up)
        gated = self._gated(gate, up, batch, space)
        self._apply("down_proj", gated, batch, space, inner, out, residual=h)
        fresh = Fresh(weights, normed, again, gated) if keep is None else None
        return Activations(heads, mixed, h, gate, up, inner, fresh)

    def backward(
        self,
        x: Tensor,  # [N, H], the input of the forward
        kept: Activations,
        gradient: Tensor,  # [N, H], in y; becomes that in x
        batch: Batch,
        space: Workspace,
        *,
        is_last: bool,  # nothing below trains: the gradient in x is left unfinished
    ) -> None:
        """Add the gradients of the block's adapters, and turn the gradient in its output into that in its input."""
        ops, eps, width, fresh = self._ops, self._shape.rms_norm_eps, self._shape.intermediate_size, kept.fresh
        d_gated = space.get("d_gated", len(x), width)
        room = self._gradient_of("down_proj", space, batch)
        room[:, : x.shape[1]] = gradient
        gated = fresh.gated if fresh else self._gated(kept.gate, kept.up, batch, space)
        self._back("down_proj", gated, kept, room, batch, space, d_gated)
        d_gate, d_up = (self._gradient_of(name, space, batch) for name in GATE_UP)
        ops.swiglu_backward(kept.gate, kept.up, d_gated, d_gate[:, :width], d_up[:, :width])
        d_normed = space.get("d_normed", *x.shape)
        seen = fresh.normed_again if fresh else self._normed("gate_up", kept.h, batch, space)
        self._back("gate_proj", seen, kept, d_gate, batch, space, d_normed)
        self._back("up_proj", seen, kept, d_up, batch, space, d_normed, add=True)
        ops.rms_norm_backward(kept.h, self._norms["gate_up"], eps, d_normed, gradient)
        room = self._gradient_of("o_proj", space, batch)
        room[:, : x.shape[1]] = gradient
        d_mixed = space.get("d_mixed", len(x), self._linear["o_proj"].in_features)
        self._back("o_proj", kept.mixed, kept, room, batch, space, d_mixed)
        d_heads = Heads(*(space.get(f"d_{name}", *part.shape) for name, part in zip("qkv", kept.heads, strict=True)))
        attend_backward(kept.heads, batch.starts, d_mixed, d_heads, ops, space, fresh.weights if fresh else None)
        seen = fresh.normed if fresh else self._normed("qkv", x, batch, space)
        for name, part in zip(QKV, d_heads, strict=True):
            dy = self._gradient_of(name, space, batch)
            ops.merge_heads(part, _turn(name, batch), dy[:, : self._linear[name].out_features])
            self._back(name, seen, kept, dy, batch, space, None if is_last else d_normed, add=name != QKV[0])
        if not is_last:
            ops.rms_norm_backward(x, self._norms["qkv"], eps, d_normed, gradient)

    def _input(self, group: str, space: Workspace, batch: Batch) -> Tensor:
        """A buffer [N, I + E] for the input of the modules of a group."""
        first = self._linear[_READERS[group][0]]
        return space.get(f"{group}.input", batch.starts.numel(), first.in_features + self._extra(group, batch))

    def _gradient_of(self, name: str, space: Workspace, batch: Batch) -> Tensor:
        """A buffer [N, O + E] for the gradient in a module's output."""
        extra = self._extra(next(group for group, readers in _READERS.items() if name in readers), batch)
        return space.get(
            _PLACE.get(name, f"{name}.gradient"), batch.starts.numel(), self._linear[name].out_features + extra
        )

    def _extra(self, group: str, batch: Batch) -> int:
        ranks = [f.rank for f in (self._factors(name, batch) for name in _READERS[group]) if f and f.count == 1]
        return max(ranks, default=0)

    def _factors(self, name: str, batch: Batch) -> Factors | None:
        return batch.lora.modules.get(self._linear[name].module) if batch.lora else None

    def _normed(self, group: str, x: Tensor, batch: Batch, space: Workspace) -> Tensor:
        seen = self._input(group, space, batch)
        self._ops.rms_norm(x, self._norms[group], self._shape.rms_norm_eps, seen[:, : x.shape[1]])
        return seen

    def _gated(self, gate: Tensor, up: Tensor, batch: Batch, space: Workspace) -> Tensor:
        seen = self._input("down", space, batch)
        self._ops.swiglu(gate, up, seen[:, : gate.shape[1]])
        return seen

    def _heads(
        self, name: str, seen: Tensor, batch: Batch, own: Workspace, space: Workspace, inner: dict[str, Tensor]
    ) -> Tensor:
        """q, k or v [S, heads, T, D], rotated where positions count."""
        linear, size = self._linear[name], self._shape.head_dim
        rows = space.get("rows", len(seen), linear.out_features)
        self._apply(name, seen, batch, space, inner, rows)
        sequences, length = batch.starts.shape
        out = own.get(name, sequences, linear.out_features // size, length, size)
        self._ops.split_heads(rows, _turn(name, batch), out)
        return out

    def _apply(
        self, name: str, seen: Tensor, batch: Batch, space: Workspace, inner: dict[str, Tensor], out: Tensor | None,
        residual: Tensor | None = None,
    ) -> None:  # fmt: skip
        linear, factors = self._linear[name], self._factors(name, batch)
        if factors is not None:
            inner[name] = linear.inner(seen, factors, space, self._mask(name, batch))
        if out is not None:
            linear.forward(seen, inner.get(name), factors, space, out, residual)

    def _back(
        self, name: str, seen: Tensor, kept: Activations, dy: Tensor, batch: Batch, space: Workspace, dx: Tensor | None,
        *, add: bool = False,
    ) -> None:  # fmt: skip
        self._linear[name].backward(
            seen, kept.inner.get(name), dy, self._factors(name, batch), space, dx, add=add, mask=self._mask(name, batch)
        )

    def _mask(self, name: str, batch: Batch) -> Tensor | None:
        linear = self._linear[name]
        return batch.dropout(linear.module, batch.starts.numel(), linear.in_features)


def _turn(name: str, batch: Batch) -> tuple[Tensor, Tensor] | None:
    return None if name == "v_proj" else batch.turn
