"""A check that cannot fail is worthless: wrong graphs of every profile but `compat`, and of encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import fedlora.graph.decoder as decoder_module
import fedlora.graph.encoder as encoder_module
import fedlora_export.checks.graph_runs as graph_runs_module
import numpy as np
import onnx_ir as ir
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.exported.inputs import joined_values, row_values
from fedlora.exported.profiles import Profile, graph_name
from fedlora.family import EncoderShape
from fedlora.graph.adapter_inputs import JoinedInputs, KernelInputs, NoAdapter
from fedlora.graph.attention import Attention
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.sequences import Sequences, sequences_of_rows
from fedlora.graph.text_embedding import text_vector
from fedlora_export.export import export_base
from numpy.typing import NDArray

from tests.export.checks.sabotage import (
    Patch,
    Sabotage,
    change_model,
    set_attribute,
    set_constant,
    set_input,
    swap_inputs,
    swap_modules,
    swap_parts,
)
from tests.tiny.encoders import encoder_pack
from tests.tiny.families import family_pack
from tests.tiny.llamas import DEFAULT, Packs

RANK = 4  # of the adapter that the check feeds
InputShapes = Mapping[str, NDArray[np.float32]]


def roll_joined(factor: str, axis: int) -> Sabotage:
    """The parts of a group's A, or the blocks of its B, stand one further than they should, the last one first."""

    def wrong(
        adapter_inputs: InputShapes, modules: Mapping[str, tuple[int, int]], groups: list[tuple[str, ...]]
    ) -> InputShapes:
        values = joined_values(adapter_inputs, modules, groups)
        size = {group[0]: modules[group[-1]][0] for group in groups}  # of the last module's output
        return {
            name: np.roll(value, RANK if axis != 1 or factor == "A" else size[name.split("+")[0]], axis)
            if "+" in name and f".lora_{factor}." in name
            else value
            for name, value in values.items()
        }

    return lambda patch: patch.setattr(graph_runs_module, "joined_values", wrong)


def give_each_row_anothers_adapter(patch: Patch) -> None:
    patch.setattr(
        graph_runs_module,
        "row_values",
        lambda adapter_inputs, modules, scales: row_values(list(reversed(adapter_inputs)), modules, scales),
    )


def number_each_row_as_another(patch: Patch) -> None:
    original = graph_runs_module.numbered
    patch.setattr(graph_runs_module, "numbered", lambda base, adapters: original(base, list(reversed(adapters))))


def shift_modules(patch: Patch) -> None:
    """The updates of one layer's products are those of the other's, which have the same sizes."""

    def change(model: ir.Model) -> None:
        nodes = [node for node in model.graph if node.op_type == "RowLora"]
        places = [node.attributes["module"].as_int() for node in nodes]
        half = len(nodes) // 2
        for node, place in zip(nodes, places[half:] + places[:half], strict=True):
            node.attributes["module"] = ir.AttrInt64("module", place)

    change_model(change)(patch)


def lose_a_token_of_the_cache(patch: Patch) -> None:
    """Rows that have read something before are one token shorter than `lengths` says: the newest one is written over."""

    def wrong(builder: GraphBuilder, tokens: Value, lengths: Value, new_tokens: Value) -> Sequences:
        before = builder.op("Sub", [lengths, new_tokens], "read_before")
        lost = builder.op("Min", [before, builder.constant("at_most_one", [1], np.int32)], "lost")
        return sequences_of_rows(builder, tokens, builder.op("Sub", [lengths, lost], "shorter"), new_tokens)

    patch.setattr(decoder_module, "sequences_of_rows", wrong)


def read_the_last_token_of_the_step(patch: Patch) -> None:
    """A row with fewer new tokens than another gives the logits of what it was filled up with."""

    def wrong(builder: GraphBuilder, normed: Value, new_tokens: Value) -> Value:
        begin, end, axis = (builder.constant(f"last_{n}", [n]) for n in (-1, np.iinfo(np.int64).max, 1))
        return builder.op("Slice", [normed, begin, end, axis], "kept")

    patch.setattr(decoder_module, "_last_of_rows", wrong)


def count_padding_in_the_mean(patch: Patch) -> None:
    def wrong(builder: GraphBuilder, shape: EncoderShape, states: Value, mask: Value) -> Value:
        every = builder.op("Max", [mask, builder.constant("one", [1])], "every_token")
        return text_vector(builder, shape, states, every)

    patch.setattr(encoder_module, "text_vector", wrong)


def rotate_all_layers_as_the_last(patch: Patch) -> None:
    original = Attention._table
    patch.setattr(Attention, "_table", lambda self, layer: original(self, self._shape.num_layers - 1))


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is done to the graph of a profile, and to which model's: an encoder's, a family's, or the default's."""

    profile: Profile
    sabotage: Sabotage
    encoder: str = ""
    family: str = ""


CASES: dict[str, Wrong] = {
    "fast: blocks of B in other rows": Wrong("fast", roll_joined("B", 0)),
    "fast: blocks of B in other columns": Wrong("fast", roll_joined("B", 1)),
    "fast: A joined in another order": Wrong("fast", roll_joined("A", 1)),
    "fast: q, k and v split by wrong sizes": Wrong("fast", set_constant("qkv_sizes", [32, 64, 32])),
    "fast: gate and up split by wrong sizes": Wrong("fast", set_constant("gate_up_sizes", [171, 173])),
    "fast: k and v of the joined product swapped": Wrong("fast", swap_parts(3)),
    "fast: gate and up of the joined product swapped": Wrong("fast", swap_parts(2)),
    "fast: k and v swapped": Wrong("fast", swap_modules(JoinedInputs, "k_proj", "v_proj")),
    "rows: adapters of the rows swapped": Wrong("rows", give_each_row_anothers_adapter),
    "rows: adapter_inputs of k and v swapped": Wrong("rows", swap_inputs("k_proj", "v_proj")),
    "rows: lengths off by one after the prompt": Wrong("rows", lose_a_token_of_the_cache),
    "rows: lengths off by one, rotation in the attention": Wrong("rows", lose_a_token_of_the_cache, family="gemma3"),
    "rows: every token of a step taken as new": Wrong("rows", set_input(".mixed", 16, None)),
    "rows: every token of a step taken as new, rotation in the attention": Wrong(
        "rows", set_input(".mixed", 16, None), family="mistral-window"
    ),
    "rows: logits of the last token of the step": Wrong("rows", read_the_last_token_of_the_step),
    "rows: logits of the first new token": Wrong("rows", set_input("last_new", 0, 1)),
    "rows: an adapter that is not added": Wrong("rows", set_input("model.layers.1.mlp.down_proj.out", 1, 0)),
    "kernel: adapters of the rows swapped": Wrong("kernel", number_each_row_as_another),
    "kernel: k and v swapped": Wrong("kernel", swap_modules(KernelInputs, "k_proj", "v_proj")),
    "kernel: k and v of the joined product swapped": Wrong("kernel", swap_parts(3)),
    "kernel: updates of other modules": Wrong("kernel", shift_modules),
    "kernel: x taken for its base": Wrong("kernel", set_input("model.layers.0.self_attn.o_proj.out", 0, 1)),
    "kernel: every token of a step taken as new": Wrong("kernel", set_input(".mixed", 16, None)),
    "base: k and v swapped": Wrong("base", swap_modules(NoAdapter, "k_proj", "v_proj")),
    "base: k and v of the joined product swapped": Wrong("base", swap_parts(3)),
    "base: gate and up swapped": Wrong("base", swap_modules(NoAdapter, "gate_proj", "up_proj")),
    "base: q, k and v split by wrong sizes": Wrong("base", set_constant("qkv_sizes", [32, 64, 32])),
    "phi3: gate and up of its own joined module swapped": Wrong("compat", swap_parts(2), family="phi3"),
    "gemma3: local layers rotate as the others": Wrong("fast", rotate_all_layers_as_the_last, family="gemma3"),
    "gemma2: attention without its cap": Wrong(
        "base", set_attribute("GroupQueryAttention", "softcap", 0.0), family="gemma2"
    ),
    "mistral: layers without their window": Wrong(
        "rows", set_attribute("GroupQueryAttention", "local_window_size", -1), family="mistral-window"
    ),
    "encoder: gelu approximated by tanh": Wrong("compat", set_attribute("Gelu", "approximate", "tanh"), "bert"),
    "encoder: queries and keys swapped": Wrong("base", swap_modules(NoAdapter, "query", "key"), "bert"),
    "encoder: padding is attended to": Wrong("compat", set_input(".mixed", 4, None), "bert"),
    "encoder: padding is attended to by rows": Wrong("rows", set_input(".mixed", 4, None), "distilbert"),
    "encoder: padding is a part of the mean": Wrong("base", count_padding_in_the_mean, "bare bert"),
    "encoder: positions off by one": Wrong("compat", set_constant("first_position", 1), "roberta"),
    "encoder: the head reads another token": Wrong("compat", set_constant("first_token", 1), "distilbert"),
    "encoder: adapter_inputs of k and v swapped": Wrong("rows", swap_inputs("key", "value"), "bert"),
    "encoder: A joined in another order": Wrong("fast", roll_joined("A", 1), "bert"),
}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[BasePack, Profile], object]:
    """How near the graph of a base comes to torch where nothing is wrong; None: it was not compared."""
    known: dict[tuple[Path, Profile], object] = {}

    def of(base: BasePack, profile: Profile) -> object:
        key = (base.directory, profile)
        if key not in known:
            (good,) = export_base(base, tmp_path_factory.mktemp("good") / "model", profiles=[profile])
            known[key] = good.exact
        return known[key]

    return of


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_graph_of_every_profile_is_caught_and_leaves_no_file(
    packs: Packs, exact: Callable[[BasePack, Profile], object], tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    wrong = CASES[name]
    base = base_of(wrong, packs)
    assert exact(base, wrong.profile) is not None
    wrong.sabotage(monkeypatch)
    words = r"was not written: .*(differ from torch's|does not run|does not load)"
    with pytest.raises(GraphError, match=rf"{graph_name(base.model, wrong.profile)} .*{words}"):
        export_base(base, tmp_path / "wrong", profiles=[wrong.profile])
    assert list(tmp_path.iterdir()) == []


def base_of(wrong: Wrong, packs: Packs) -> BasePack:
    if wrong.encoder:
        return encoder_pack(wrong.encoder)
    return family_pack(wrong.family) if wrong.family else packs(DEFAULT)
