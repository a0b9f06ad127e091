"""The adapter folder: nothing outside of it is ever read, whatever the path says and whoever changes files meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from fedlora.errors import AdapterError, AdapterTooLargeError, ConfigError
from fedlora_serve.http.service import adapter_folder
from fedlora_serve.http.service.adapter_folder import AdapterFolder, NoSuchAdapterError
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = ("adapter_config.json", "adapter_model.safetensors")


def save_adapter(directory: Path, content: str = "inside") -> None:
    directory.mkdir(parents=True)
    for file in FILES:
        (directory / file).write_text(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "adapters"
    save_adapter(root / "tone")
    save_adapter(root / "team" / "deep")
    save_adapter(tmp_path / "outside", "secret")
    (root / "x.onnx_adapter").write_text("file")
    (root / "x.onnx_adapter.json").write_text("manifest")
    return root


@pytest.fixture
def folder(root: Path) -> AdapterFolder:
    return AdapterFolder(root)


def test_an_adapter_is_copied_with_its_own_files_only(folder: AdapterFolder, root: Path) -> None:
    (root / "tone" / "optimizer.pt").write_text("large")
    copy = folder.copy("tone")
    assert sorted(file.name for file in copy.iterdir()) == list(FILES)
    assert (copy / FILES[0]).read_text() == "inside"
    assert folder.copy("team/deep").name == "deep"


def test_an_adapter_file_brings_its_manifest_where_it_has_one(folder: AdapterFolder, root: Path) -> None:
    assert sorted(file.name for file in folder.copy("x.onnx_adapter").parent.iterdir()) == [
        "x.onnx_adapter",
        "x.onnx_adapter.json",
    ]
    (root / "x.onnx_adapter.json").unlink()
    assert [file.name for file in folder.copy("x.onnx_adapter").parent.iterdir()] == ["x.onnx_adapter"]


def test_a_copy_stays_as_it_was_when_the_folder_changes(folder: AdapterFolder, root: Path) -> None:
    copy = folder.copy("tone")
    (root / "tone" / FILES[1]).write_text("changed")
    assert (copy / FILES[1]).read_text() == "inside"


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/etc/passwd", "..", "../outside", "team/../../outside", "./tone", "tone/", "team//deep", "~/x",
        ".hidden", "team/.hidden", "a\0b", "tone\n", "a b", "C:\\x", "\\\\host\\x", "ton\u00e9", "-", "x" * 129,
        "/".join("a" * 17), "file:///etc", "%2e%2e", "\udc80",
    ],
)  # fmt: skip
def test_a_path_that_is_not_plain_is_refused(folder: AdapterFolder, path: str) -> None:
    with pytest.raises(ConfigError, match="relative to the adapter folder"):
        folder.copy(path)


@pytest.mark.parametrize("path", ["none", "team/none", "team", "none.onnx_adapter", "none/deep"])
def test_where_nothing_is_the_error_says_what_was_expected(folder: AdapterFolder, path: str) -> None:
    with pytest.raises(NoSuchAdapterError, match=r"expected an \.onnx_adapter file, or a directory with"):
        folder.copy(path)


def test_a_link_is_followed_nowhere_on_the_way(folder: AdapterFolder, root: Path) -> None:
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "inner").symlink_to(root / "tone")
    (root / "deep").mkdir()
    (root / "deep" / "up").symlink_to(root.parent)
    save_adapter(root / "mixed")
    (root / "mixed" / FILES[1]).unlink()
    (root / "mixed" / FILES[1]).symlink_to(root.parent / "outside" / FILES[1])
    (root / "y.onnx_adapter").symlink_to(root / "x.onnx_adapter")
    for path in ("linked", "inner", "deep/up/outside", "mixed", "y.onnx_adapter"):
        with pytest.raises(AdapterError, match="a link"):
            folder.copy(path)


def test_the_folder_itself_may_be_a_link(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    assert AdapterFolder(root.parent / "link").copy("tone").is_dir()


def test_a_file_with_another_name_is_refused(folder: AdapterFolder, root: Path) -> None:
    (root / "tone" / FILES[1]).unlink()
    os.link(root.parent / "outside" / FILES[1], root / "tone" / FILES[1])
    with pytest.raises(AdapterError, match="hard link"):
        folder.copy("tone")


def test_what_is_no_plain_file_is_refused_without_waiting(folder: AdapterFolder, root: Path) -> None:
    (root / "tone" / FILES[1]).unlink()
    os.mkfifo(root / "tone" / FILES[1])
    os.mkfifo(root / "pipe.onnx_adapter")
    (root / "folder.onnx_adapter").mkdir()
    for path in ("tone", "pipe.onnx_adapter", "folder.onnx_adapter"):
        with pytest.raises(AdapterError, match="not a plain file"):
            folder.copy(path)
    with pytest.raises(AdapterError, match="not a directory"):
        folder.copy("x.onnx_adapter/deep")


def test_a_file_that_is_too_large_is_refused(
    folder: AdapterFolder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_folder, "MAX_FILE_BYTES", 5)
    with pytest.raises(AdapterError, match="6 bytes; at most 5 are read"):
        folder.copy("tone")


def test_no_more_is_copied_than_the_store_takes(folder: AdapterFolder, root: Path) -> None:
    """A file with holes takes no room in the folder, and its whole size where it is copied to."""
    folder.most_bytes = {True: 100, False: 50}.__getitem__
    with (root / "tone" / FILES[1]).open("r+b") as file:
        file.truncate(3 << 30)
    with pytest.raises(AdapterTooLargeError, match=r"3221225472 bytes; at most 100 are read; raise --adapter-memory"):
        folder.copy("tone")
    with (root / "x.onnx_adapter").open("r+b") as file:
        file.truncate(51)
    with pytest.raises(AdapterTooLargeError, match="51 bytes; at most 50 are read"):
        folder.copy("x.onnx_adapter")
    for name, most in (("x.onnx_adapter.json", 4 << 20), ("team/deep/adapter_config.json", 4 << 20)):
        with (root / name).open("r+b") as file:
            file.truncate(3 << 30)
        folder.most_bytes = lambda is_directory: 100
        with pytest.raises(AdapterError, match=f"3221225472 bytes; at most {most} are read"):
            folder.copy(name.removesuffix(".json").removesuffix("/adapter_config"))


def test_what_was_refused_leaves_nothing_behind(folder: AdapterFolder, root: Path) -> None:
    kept = folder.copy("tone")
    (root / "tone" / FILES[1]).unlink()
    with pytest.raises(NoSuchAdapterError):
        folder.copy("tone")
    assert list(kept.parents[1].iterdir()) == [kept.parent]


def test_a_copy_is_kept_until_its_name_has_another_or_none(folder: AdapterFolder) -> None:
    first, second = folder.copy("tone"), folder.copy("tone")
    folder.keep("a", first)
    folder.keep("a", second)
    assert (first.exists(), second.exists()) == (False, True)
    folder.drop("a")
    folder.drop("unknown")
    assert not second.exists()


def test_a_source_is_shown_by_its_path_in_the_folder_and_no_more(folder: AdapterFolder) -> None:
    assert folder.shown(folder.copy("team/deep")) == "team/deep"
    assert folder.shown(Path("/somewhere/else/tone")) == "tone"


def test_copies_are_for_the_service_alone_and_gone_when_it_closes(folder: AdapterFolder) -> None:
    copy = folder.copy("tone")
    assert copy.parents[1].stat().st_mode & 0o077 == 0
    folder.close()
    assert not copy.exists()


def test_a_folder_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--adapter-folder .*no folder"):
        AdapterFolder(tmp_path / "none")


@settings(max_examples=200, deadline=None)
@given(path=st.text(st.sampled_from("./~ab\\\0- \n"), max_size=12))
def test_no_path_leads_to_what_lies_outside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    root = tmp_path_factory.getbasetemp() / "any-path"
    if not root.exists():
        save_adapter(root / "inside" / "a")
        save_adapter(root / "a", "secret")
        save_adapter(root / "b", "secret")
    folder = AdapterFolder(root / "inside")
    try:
        copy = folder.copy(path)
    except (ConfigError, AdapterError):
        return
    assert path == "a"
    assert (copy / FILES[0]).read_text() == "inside"


def test_links_that_come_and_go_while_it_reads_never_lead_outside(folder: AdapterFolder, root: Path) -> None:
    """A directory and its replacement by a link are swapped as fast as one can, on two levels."""
    save_adapter(root / "race" / "a")
    outside = root.parent / "race-outside"
    save_adapter(outside / "a", "secret")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (root / "race").rename(root / "aside")
            (root / "race").symlink_to(outside)
            (root / "race").unlink()
            (root / "aside").rename(root / "race")

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    until = time.monotonic() + 1.0
    try:
        while time.monotonic() < until:
            try:
                copy = folder.copy("race/a")
            except AdapterError as error:
                outcomes.add(type(error))
            else:
                assert {(copy / file).read_text() for file in FILES} == {"inside"}
                folder.discard(copy)
    finally:
        stop.set()
        swapper.join()
    assert outcomes <= {AdapterError, NoSuchAdapterError}


def test_what_lies_where_an_adapter_was_expected_is_told_by_its_place_in_the_folder(
    folder: AdapterFolder, root: Path
) -> None:
    shutil.copytree(root / "tone", root / "trained" / "checkpoint-7")
    with pytest.raises(
        NoSuchAdapterError, match=r"a Trainer's folder, with checkpoint-7: name trained/checkpoint-7"
    ) as told:
        folder.copy("trained")
    assert str(root) not in str(told.value)
    (root / "hub").mkdir()
    for file in FILES:
        (root / "hub" / file).symlink_to(root / "tone" / file)
    with pytest.raises(AdapterError, match=r"a link, as in a hub's cache, .*cp -rL hub NAME"):
        folder.copy("hub")
    shutil.copytree(root / "hub", root / "followed")  # as cp -rL does
    assert folder.copy("followed").is_dir()


def test_what_an_adapter_brings_for_chats_is_copied_within_its_bound(folder: AdapterFolder, root: Path) -> None:
    (root / "tone" / "chat_template.jinja").write_text("hi")
    (root / "tone" / "other.json").write_text("{}")
    assert sorted(file.name for file in folder.copy("tone").iterdir()) == sorted([*FILES, "chat_template.jinja"])
    with (root / "tone" / "tokenizer_config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(AdapterError, match=r"tokenizer_config\.json.*1073741824 bytes; at most 16777216 are read"):
        folder.copy("tone")
