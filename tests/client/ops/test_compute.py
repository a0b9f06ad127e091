"""Which dtype a machine trains in: decided once, by a clear margin, and remembered where nobody else can write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fedlora.errors import ConfigError
from fedlora_client.ops import compute
from fedlora_client.ops.compute import choose_compute, decision, decision_file, faster_dtype
from fedlora_client.ops.remembered import recall, remember
from hypothesis import given
from hypothesis import strategies as st

Speeds = dict[torch.dtype, float]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    choose_compute.cache_clear()
    yield tmp_path / "cache"
    choose_compute.cache_clear()


def timed(monkeypatch: pytest.MonkeyPatch, ratio: float) -> list[torch.dtype]:
    """A machine on which bfloat16 is so many times as fast as float32; return what was timed."""
    asked: list[torch.dtype] = []

    def product_gflops(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return 100 * (ratio if dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(compute, "product_gflops", product_gflops)
    return asked


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(0.02, torch.float32), (0.99, torch.float32), (1.2, torch.float32), (1.6, torch.bfloat16)]
)
def test_bfloat16_is_taken_where_it_is_clearly_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, dtype: torch.dtype
) -> None:
    timed(monkeypatch, ratio)
    assert faster_dtype("kernels") == dtype


def test_a_machine_decides_once_however_it_is_busy_later(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(timed(monkeypatch, 0.3)) == 0
    assert faster_dtype("kernels") == torch.float32
    asked = timed(monkeypatch, 9.0)
    assert faster_dtype("kernels") == torch.float32
    assert asked == []
    assert faster_dtype("other kernels") == torch.bfloat16, "for other kernels it is another decision"
    (cache / decision_file("kernels")).unlink()
    assert faster_dtype("kernels") == torch.bfloat16


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"gflops": 1}', '{"gflops": {"float32": 1}}', '{"gflops": {"float32": "x", "bfloat16": 1}}',
        '{"gflops": {"float32": NaN, "bfloat16": 1}}', '{"gflops": {"float32": -1, "bfloat16": 1}}', "[" * 50000,
        '{"gflops": {"float32": 0, "bfloat16": 1}}', "\x00",
    ],
)  # fmt: skip
def test_a_decision_that_cannot_be_read_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    remember(decision_file("kernels"), {"float32": 1.0, "bfloat16": 9.0})
    (cache / decision_file("kernels")).write_text(text)
    asked = timed(monkeypatch, 0.3)
    assert faster_dtype("kernels") == torch.float32
    assert len(asked) == 2
    assert recall(decision_file("kernels")) == {"float32": 100.0, "bfloat16": pytest.approx(30.0)}


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_a_decision_that_others_may_write_does_not_count(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    file = cache / decision_file("kernels")
    remember(file.name, {"float32": 1.0, "bfloat16": 9.0})
    if what == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        (file if what == "file" else cache).chmod(0o777)
    timed(monkeypatch, 0.3)
    assert faster_dtype("kernels") == torch.float32


def test_without_a_cache_every_process_decides_and_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "file" / "cache"))
    choose_compute.cache_clear()
    timed(monkeypatch, 9.0)
    chosen = choose_compute(device="cpu")
    assert chosen.dtype == torch.bfloat16
    assert "nothing is remembered" in decision(chosen)
    choose_compute.cache_clear()


def test_doctor_can_say_how_it_was_decided_and_how_to_decide_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.5)
    chosen = choose_compute(device="cpu")
    told = decision(chosen)
    assert "bfloat16 was x0.5 as fast as float32" in told
    (file,) = cache.glob("compute-*.json")
    assert f"remembered in {file} (remove it to have it timed again)" in told
    assert json.loads(file.read_text()) == {"gflops": {"float32": 100.0, "bfloat16": 50.0}}
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_is_asked_for_by_name_is_not_decided(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, 9.0)
    assert choose_compute("float32", device="cpu").dtype == torch.float32
    assert asked == []
    assert not list(cache.glob("compute-*.json"))
    with pytest.raises(ConfigError):
        choose_compute(device="nowhere")


@given(one=st.floats(1e-3, 1e6), other=st.floats(1e-3, 1e6))
def test_what_is_remembered_is_recalled_equal(
    one: float, other: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLORA_CACHE", str(tmp_path_factory.getbasetemp() / "recalled"))
        remember("compute-x.json", {"float32": one, "bfloat16": other})
        assert recall("compute-x.json") == {"float32": one, "bfloat16": other}
