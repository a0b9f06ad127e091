"""docs/house.md names the files through which an adapter file becomes one of a row of the batch: those whose code runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fedlora.base.pack import open_pack
from fedlora.exported.profiles import Profile
from fedlora_export.adapter_export import write_onnx_adapter
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.kv_cache import KVCache
from fedlora_serve.batching.request import Request
from fedlora_serve.batching.row_graph import Part, RowGraph
from fedlora_serve.batching.row_session import open_rows
from fedlora_serve.batching.rows import Rows
from fedlora_serve.batching.sequence import SequenceState
from fedlora_serve.text.sampling import Sampling
from fedlora_serve.text.tokenizer import open_tokenizer

from tests.serve.speakers import Speaker

PROJECT = Path(__file__).resolve().parents[3]
# What knows nothing of adapters, and what a sequence without one needs too.
OTHERS = (
    "core/fedlora/files/",
    "core/fedlora/family/",
    "serve/fedlora_serve/batching/kv_cache.py",
    "serve/fedlora_serve/batching/sequence.py",
    "serve/fedlora_serve/step_watch.py",
    "serve/fedlora_serve/text/",
    "tests/",
)


def named_in_the_document() -> list[str]:
    text = (PROJECT / "docs" / "house.md").read_text(encoding="utf-8")
    return re.findall(r"^\d+\. `([^`]+)`", text[text.index("## One way through it") :], re.MULTILINE)


def files_that_run(call: Callable[[], object]) -> list[str]:
    """The project's files of which a function is called, in the order of their first calls."""
    found: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PROJECT):
            found[file.relative_to(PROJECT).as_posix()] = None

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return [file for file in found if not file.startswith((*OTHERS, ".venv/"))]


def test_the_files_on_the_way_of_an_adapter_are_those_that_the_document_names(
    folders: dict[Profile, Path], speakers: list[Speaker], tmp_path: Path
) -> None:
    base = open_pack(folders["kernel"])
    path = tmp_path / "tone.onnx_adapter"
    write_onnx_adapter(speakers[3].adapter, base.fingerprint, path)
    opened = open_rows(base, threads=1)
    kv_cache = KVCache(base.shape, 1, 8)
    rows, graph = Rows(kv_cache, opened.adapters), RowGraph(opened.session, base.shape, kv_cache, opened.adapters)
    store = AdapterStore(base, budget_bytes=1 << 30, layout="float32")
    tokenizer, vocab_size = open_tokenizer(base.directory), base.shape.vocab_size

    def way() -> None:
        store.load("tone", path)
        lease = store.lease("tone")
        request = Request(prompt=[1, 2, 3], sampling=Sampling(), on_event=lambda _: None, adapter=lease)
        sequence = SequenceState(request, tokenizer, vocab_size=vocab_size, stop_token_ids=(), limit=16)
        rows.join(sequence)
        graph.step(0, [Part(sequence.tokens, 0, sequence.adapter)])
        rows.leave(sequence)
        lease.release()

    assert files_that_run(way) == named_in_the_document()
