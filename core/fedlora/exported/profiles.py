"""The graphs that are made of one base: all share the pack's weights, and differ in how an adapter comes in."""

from __future__ import annotations

from typing import Literal, get_args

from fedlora.exported.cache_prefix import cache_inputs
from fedlora.exported.inputs import input_shapes, joined_scale_shapes, joined_shapes
from fedlora.family import DecoderShape, ModelShape
from fedlora.lora.output_scale import scale_shapes

Profile = Literal["compat", "fast", "rows", "kernel", "base"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
DEFAULT: Profile = "compat"
HEAD_PROFILES: frozenset[Profile] = frozenset({"compat", "fast"})  # which take a head of the adapter's own, too
ROW_PROFILES: frozenset[Profile] = frozenset({"rows", "kernel"})  # rows of any length, each with an adapter of its own
SCALE_PROFILES: frozenset[Profile] = frozenset({"compat", "fast", "rows"})  # with inputs for scales, where asked to

# compat  an A and a B for each module, optional, of any rank: files of other tools run on it, and it in other tools
# fast    q, k and v are one product with one A and one B, and so are gate and up
# rows    every row of the batch has an A and a B of its own
# kernel  rows with adapters by number, through an operator of our own in C (`fedlora.row_lora`)
# base    no adapter


def graph_name(model: ModelShape, profile: Profile) -> str:
    """The file of a graph, beside the pack's weights: decoder.onnx, decoder.fast.onnx, encoder.onnx ..."""
    kind = "decoder" if isinstance(model, DecoderShape) else "encoder"
    return f"{kind}.onnx" if profile == DEFAULT else f"{kind}.{profile}.onnx"


def graph_inputs(
    model: ModelShape, profile: Profile, *, takes_head: bool = True, takes_scales: bool = False
) -> dict[str, tuple[int, ...]]:
    """{adapter input: shape} of a graph, with -1 for the rank; in `rows` it is the shape of each row's.

    In `kernel` there are none: its adapters are named by number. In HEAD_PROFILES an encoder's head is among them, with -1
    for the number of labels; graphs of earlier versions had none there: `takes_head` False. With `takes_scales` what scales
    modules is (`fedlora.lora.output_scale`), which a graph takes where it was exported so; `kernel` takes it by number.
    """
    modules = model.linear_modules()
    if profile in ("base", "kernel"):
        return {}
    factors = joined_shapes(modules, model.linear_groups()) if profile == "fast" else input_shapes(modules)
    scales = scale_shapes(model) if takes_scales else {}
    if profile == "fast":
        scales = joined_scale_shapes(scales, model.linear_groups())
    return {**factors, **scales, **(model.head_inputs() if takes_head and profile in HEAD_PROFILES else {})}


def file_inputs(model: ModelShape, profile: Profile) -> dict[str, tuple[int, ...]]:
    """{input: shape} of what an adapter file may hold: those of a graph, and the beginning of a cache."""
    return {**graph_inputs(model, profile, takes_scales=True), **cache_inputs(model)}
