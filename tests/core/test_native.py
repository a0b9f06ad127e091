"""A library from a C source: the first build that works, kept for the next time."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fedlora.native import Build, BuildError, cached_library, loaded_library

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


def test_a_link_in_the_librarys_place_is_not_followed(source: Path, tmp_path: Path) -> None:
    library = cached_library(source, "answer", (answering(1),))
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(BuildError, match=r"answer-.*\.so: expected a file, got .*; remove it"):
        cached_library(source, "answer", (answering(1),))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_into_is_not_used(source: Path, tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(BuildError, match=r"others can write into it; close it with chmod 700, or set FEDLORA_CACHE"):
        cached_library(source, "answer", (answering(1),))
    assert list(folder.iterdir()) == []


def test_a_folder_of_another_user_is_not_used(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_library(source, "answer", (answering(1),))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    if tmp_path.stat().st_uid == 0:
        os.chown(tmp_path / "cache", 1234, 1234)
    with pytest.raises(BuildError, match="others can write into it"):
        cached_library(source, "answer", (answering(1),))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="loaded by its path where descriptors have no names")
def test_what_is_loaded_is_what_was_checked_even_if_the_file_is_swapped_between(source: Path) -> None:
    def loaded(number: int, swap: Callable[[Path], object] = lambda library: None) -> int:
        def load(path: Path) -> int:
            swap(library)
            return int(ctypes.CDLL(str(path)).answer())

        library = cached_library(source, "answer", (answering(number),))
        return loaded_library(lambda: library, load)

    other = cached_library(source, "answer", (answering(3),))
    assert loaded(1, lambda library: Path(shutil.copy(other, f"{library}.x")).replace(library)) == 1
    assert loaded(2) == 2, "another library under the same descriptor's name"
