"""A library from a C source: the first build that works, kept for the next time."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from fedlora.native import Build, BuildError, cached_library

SHARED = Build(compile_flags=("-O0", "-fPIC"))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return ANSWER; }\n")
    return path


def answering(number: int, *flags: str) -> Build:
    return Build(compile_flags=(*SHARED.compile_flags, f"-DANSWER={number}", *flags))


def test_the_first_build_that_works_is_taken(source: Path) -> None:
    builds = (answering(1, "-fno-such-flag-at-all"), answering(2), answering(3))
    library = cached_library(source, "answer", builds)
    assert ctypes.CDLL(str(library)).answer() == 2
    assert list(library.parent.iterdir()) == [library]
    assert cached_library(source, "answer", builds) == library


def test_where_no_build_works_the_last_ones_message_is_told_and_nothing_is_left(source: Path) -> None:
    with pytest.raises(BuildError, match="ANSWER"):
        cached_library(source, "answer", (answering(1, "-fno-such-flag-at-all"), SHARED))
    assert list((source.parent / "cache").iterdir()) == []


def test_a_function_that_is_nowhere_is_an_error_of_the_build(source: Path) -> None:
    source.write_text("int missing(void);\nint answer(void) { return missing(); }\n")
    with pytest.raises(BuildError, match="missing"):
        cached_library(source, "answer", (SHARED,))


def test_flags_source_and_headers_each_make_another_library(source: Path, tmp_path: Path) -> None:
    header = tmp_path / "answer.h"
    header.write_text("\n")
    libraries = {cached_library(source, "answer", (answering(number),), headers=(header,)) for number in (1, 2)}
    header.write_text("/* another */\n")
    libraries.add(cached_library(source, "answer", (answering(1),), headers=(header,)))
    source.write_text(source.read_text() + "/* another */\n")
    libraries.add(cached_library(source, "answer", (answering(1),), headers=(header,)))
    assert len(libraries) == 4


def test_a_library_that_others_can_write_is_not_loaded(source: Path) -> None:
    library = cached_library(source, "answer", (answering(1),))
    library.chmod(0o666)
    with pytest.raises(
        BuildError, match="others can write it; remove it, or set FEDLORA_CACHE to a folder of your own"
    ):
        cached_library(source, "answer", (answering(1),))
