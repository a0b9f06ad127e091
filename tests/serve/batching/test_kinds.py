"""Rows of one batch whose adapters are of different kinds: each has the scores that it has alone."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import open_pack
from fedlora.errors import AdapterMismatchError
from fedlora.exported.profiles import Profile
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.kinds import BY_NAME
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.row_lora.layout import LayoutDtype
from fedlora.row_lora.library import row_lora
from fedlora_export.export import export_base
from fedlora_serve.adapters.loading import LoadedAdapter, WeightedAdapter, load_adapter
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.adapters.together import together
from fedlora_serve.batching.kv_cache import KVCache
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.row_session import open_rows
from fedlora_serve.batching.rows import CopiedAdapters, NumberedAdapters
from fedlora_serve.local.engine import Engine

from tests.reference.agreement import assert_close
from tests.serve.http.real_services import opened
from tests.serve.speakers import random_prompt
from tests.tiny.adapters import random_adapter
from tests.tiny.families import family_pack
from tests.tiny.kinds import adapter_of_kind

KINDS = ("lora", *(name for name, kind in BY_NAME.items() if name != "lora" and (kind.scales or kind.is_lora)))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> dict[Profile, Path]:
    """A folder for each profile of rows, with the graph of one sequence; `kernel` needs no option."""
    folder, base = tmp_path_factory.mktemp("scaled"), family_pack("llama-biases")
    places: dict[Profile, Path] = {"kernel": folder / "kernel", "rows": folder / "rows"}
    export_base(base, places["rows"], profiles=("compat", "rows"), accuracy_level=FLOAT_ACCURACY, takes_scales=True)
    shutil.copytree(places["rows"], places["kernel"])
    export_base(open_pack(places["kernel"]), profiles=("kernel",), accuracy_level=FLOAT_ACCURACY)
    return places


@pytest.fixture(scope="module")
def adapters(scaled: dict[Profile, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{kind: a PEFT directory}"""
    folder, base = tmp_path_factory.mktemp("kinds"), open_pack(scaled["rows"])
    for kind in KINDS:
        adapter = random_adapter(base) if kind == "lora" else adapter_of_kind(kind, base)
        write_peft(folder / kind, PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name="base")
    return {kind: folder / kind for kind in KINDS}


def test_rows_of_every_kind_in_one_batch_have_the_scores_of_single_sequences(
    scaled: dict[Profile, Path], adapters: dict[str, Path], profile: Profile
) -> None:
    base, random = open_pack(scaled[profile]), np.random.default_rng(1)
    rows = open_rows(base, threads=1)
    assert rows.manifest.profile == profile
    layout: LayoutDtype | None = "float32" if rows.lays_out_adapters else None
    graph = RowGraph(rows.session, base.shape, KVCache(base.shape, 8, 4), rows.adapters)
    store = AdapterStore(base, budget_bytes=1 << 30, layout=layout, read=partial(load_adapter, graph=rows.manifest))
    versions: list[LoadedAdapter | None] = [*(store.load(kind, path) for kind, path in adapters.items()), None]
    single = Engine(scaled[profile], threads=1)
    alone = [*map(single.load_adapter, adapters.values()), None]
    assert [version.digest for version in versions if version] == [one.digest for one in alone if one]
    for chosen in (
        [0, 1, 2, 3, 4],
        [4, 3, 0],
        [0, 4],
    ):  # with and without rows that scale: nothing stays of an earlier step
        decodings, some = [single.start(alone[n]) for n in chosen], [versions[n] for n in chosen]
        for version in filter(None, some):
            graph.adapters.join(version)
        for length in (6, 1):
            reads = [random_prompt(random, length) for _ in chosen]
            parts = [Part(read, one.length, version) for read, one, version in zip(reads, decodings, some, strict=True)]
            scores = graph.step(0, parts)
            for row, (read, one) in enumerate(zip(reads, decodings, strict=True)):
                assert_close(scores[row], one.step(read))
        for version in filter(None, some):
            graph.adapters.leave(version)


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_the_bytes_of_an_adapter_are_those_of_its_scales_too(
    scaled: dict[Profile, Path], adapters: dict[str, Path], kind: str
) -> None:
    base = open_pack(scaled["rows"])
    plain = AdapterStore(base, budget_bytes=1 << 20).load(kind, adapters[kind])
    laid_out = AdapterStore(base, budget_bytes=1 << 20, layout="float32").load(kind, adapters[kind])
    named = {name for name in plain.inputs if name.endswith(("_scale", "_shift"))}
    assert plain.size_bytes == sum(value.nbytes for value in plain.inputs.values())
    modules = {name.rpartition(".")[0] for name in named}
    both = 2 * 4 * sum(base.model.linear_modules()[module][0] for module in modules)
    assert laid_out.values.scales.nbytes == both  # type: ignore[union-attr]
    assert laid_out.size_bytes == both + laid_out.values.values.nbytes + laid_out.values.table.nbytes  # type: ignore[union-attr]
    assert plain.rank == (4 if kind == "dora" else 0)
    other = AdapterStore(base, budget_bytes=1 << 20).load("lora", adapters["lora"])
    for one in (plain, laid_out):
        with pytest.raises(
            AdapterMismatchError, match=rf"{kind} scales what modules give \(DoRA, IA3\), of which there is no"
        ):
            together([WeightedAdapter(adapter=other, weight=1.0), WeightedAdapter(adapter=one, weight=0.5)])


def test_a_service_whose_graph_takes_no_scales_refuses_the_adapter_and_says_what_to_write(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    export_base(family_pack("llama-biases"), tmp_path / "plain", profiles=("compat", "rows"))
    told = r"decoder\.rows\.onnx has no inputs for that; .*--profile rows --output-scales"
    with (
        pytest.raises(AdapterMismatchError, match=told),
        opened(tmp_path / "plain", adapters={"a": str(adapters["ia3"])}),
    ):
        pass
    with pytest.raises(
        AdapterMismatchError, match=r"decoder\.onnx has no inputs for that; .*--profile compat --output-scales"
    ):
        Engine(tmp_path / "plain", threads=1).load_adapter(adapters["dora"])
    with opened(tmp_path / "plain", adapters={"a": str(adapters["vera"])}) as state:
        assert state.store.list()[0].rank == 4


def test_an_adapter_for_another_graph_gets_no_row_and_costs_the_others_nothing(
    scaled: dict[Profile, Path], adapters: dict[str, Path]
) -> None:
    base = open_pack(scaled["rows"])
    loaded = load_adapter(adapters["ia3"], base)
    with pytest.raises(
        AdapterMismatchError, match=r"ia3: it scales what modules give .*--profile rows --output-scales"
    ):
        CopiedAdapters(base.shape.linear_modules()).join(loaded)
    with pytest.raises(AdapterMismatchError, match="ia3: not laid out for the graph kernel; load it with a layout"):
        NumberedAdapters(row_lora()).join(loaded)
