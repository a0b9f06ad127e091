"""What each data set deals out, and what it says where there is nothing to deal."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from fedlora.config.run import DataConfig, Scalar
from fedlora.data.datasets import DeviceData, find_dataset
from fedlora.data.examples import text_of
from fedlora.errors import ConfigError, DataError
from fedlora_simulations.datasets.stdlib import (
    HELD_OUT,
    digest,
    package_files,
    pretraining_documents,
    stdlib_directory,
)


def dealt(name: str, node: Mapping[str, Scalar], path: Path | str = "") -> DeviceData:
    """What data set `name` gives the device `node`, found as a device finds it."""
    return find_dataset(name)(DataConfig(name=name, path=str(path)), node)


def partition(number: int) -> dict[str, Scalar]:
    return {"partition-id": number, "num-partitions": 20}


def test_an_unknown_data_set_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="no data set 'wikipedia'; there is files, shakespeare, stdlib"):
        find_dataset("wikipedia")


def test_the_standard_library_has_20_packages_for_20_devices() -> None:
    assert len(HELD_OUT) == len(set(HELD_OUT)) == 20
    assert [dealt("stdlib", partition(device)).name for device in range(20)] == list(HELD_OUT)


@pytest.mark.parametrize("package", HELD_OUT)
def test_this_interpreter_has_the_held_out_package(package: str) -> None:
    assert (stdlib_directory() / package).is_dir()
    assert package_files(package), f"{package} has no Python source"
    data = dealt("stdlib", partition(HELD_OUT.index(package)))
    assert data.train
    assert data.held_out
    assert data.train_bytes > 2000


@pytest.mark.parametrize("package", HELD_OUT)
def test_a_package_is_split_into_text_to_train_on_and_the_last_tenth_of_each_file(package: str) -> None:
    data = dealt("stdlib", partition(HELD_OUT.index(package)))
    train, held_out = map(text_of, data.train), map(text_of, data.held_out)
    for file in package_files(package):
        text = file.read_text(encoding="utf-8")
        if not text:
            continue
        begin = next(train)
        rest = text[len(begin) :]
        assert begin + rest == text
        if rest:
            assert next(held_out) == rest
            assert begin.endswith("\n"), "the cut is between two lines"
            _, _, after_first_line = rest.partition("\n")
            assert len(after_first_line) <= 0.1 * len(text) + 1 <= len(rest) + 1
    assert [*train, *held_out] == [], "every text is one of the files"


def test_a_package_has_none_of_its_tests() -> None:
    for package in HELD_OUT:
        assert not [file for file in package_files(package) if {"test", "tests"} & set(file.parts[:-1])]


def test_a_device_beyond_the_standard_library_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"partition-id is 20; .* has 20, .* lower simulation\.devices"):
        dealt("stdlib", partition(20))


def shared_out(devices: int) -> list[DeviceData]:
    return [dealt("stdlib", {"partition-id": device, "num-partitions": devices}) for device in range(devices)]


@pytest.mark.parametrize("devices", [21, 50, 100])
def test_with_more_devices_than_packages_the_files_of_the_largest_are_shared_out(devices: int) -> None:
    data = shared_out(devices)
    names = [device.name for device in data]
    assert names[:20] == list(HELD_OUT)
    assert len(set(names)) == devices
    assert all(device.train_bytes > 1500 and device.held_out for device in data)
    for package in HELD_OUT:
        parts = [device for device in data if device.name == package or device.name.startswith(f"{package}-")]
        assert [part.name for part in parts[1:]] == [f"{package}-{number}" for number in range(2, len(parts) + 1)]
        whole = dealt("stdlib", partition(HELD_OUT.index(package)))
        assert sorted(text_of(text) for part in parts for text in part.train) == sorted(map(text_of, whole.train)), (
            "each file on one device"
        )
        assert sorted(text_of(text) for part in parts for text in part.held_out) == sorted(map(text_of, whole.held_out))


def test_fifty_devices_with_a_part_of_the_standard_library_differ_less_than_packages_do() -> None:
    packages, parts = ([device.train_bytes for device in shared_out(devices)] for devices in (20, 50))
    assert max(parts) / min(parts) < max(packages) / min(packages)


def test_more_devices_than_the_standard_library_has_files_for_are_refused_with_how_many_it_has() -> None:
    with pytest.raises(DataError, match=r"simulation\.devices is 5000; .* have text for (\d+): lower it") as refusal:
        dealt("stdlib", {"partition-id": 0, "num-partitions": 5000})
    most = int(str(refusal.value).rsplit(" ", 3)[1].rstrip(":"))
    assert most >= 100
    assert all(device.train_bytes > 1500 and device.held_out for device in shared_out(most))


def test_no_text_of_a_device_is_among_the_documents_that_the_base_was_trained_on() -> None:
    root = stdlib_directory()
    files = {file for package in HELD_OUT for file in package_files(package)}
    names = {file.relative_to(root).as_posix() for file in files}
    # A file of a few characters may well have a twin; one with a page of text has none.
    texts = {text for text in (file.read_text(encoding="utf-8") for file in files) if len(text) > 200}
    documents = dict(pretraining_documents())
    assert len(documents) > 100
    assert not names & documents.keys()
    assert not texts & set(documents.values())


def test_no_test_of_a_device_is_among_the_documents_that_the_base_was_trained_on() -> None:
    for name, _ in pretraining_documents():
        assert not [package for package in HELD_OUT if package in name], name


def test_the_documents_have_a_digest_that_tells_every_change() -> None:
    documents = [("a.py", "x = 1\n"), ("b.py", "y = 2\n")]
    assert digest(documents) == digest(documents)
    for other in ([documents[0]], [("a.py", "x = 1"), documents[1]], [("c.py", "x = 1\n"), documents[1]]):
        assert digest(other) != digest(documents)


def role(client: str, train: list[str], test: list[str]) -> dict[str, object]:
    return {"client": client, "train": train, "test": test}


def gzipped(path: Path, *lines: object) -> Path:
    """A roles.jsonl.gz; a line that is text is written as it is."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for line in lines:
            file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    return path


def test_shakespeare_deals_the_largest_roles_first(tmp_path: Path) -> None:
    path = gzipped(
        tmp_path / "roles.jsonl.gz",
        role("PAGE", ["A word."], ["Sir?"]),
        role("HAMLET", ["To be,", "or not to be."], ["The rest", "is silence."]),
        role("GHOST", ["Remember me, remember me, and again remember me."], []),
    )
    hamlet, page = dealt("shakespeare", partition(0), path), dealt("shakespeare", partition(1), path)
    assert (hamlet.name, hamlet.train, hamlet.held_out) == (
        "HAMLET",
        ("To be,\n\nor not to be.",),
        ("The rest\n\nis silence.",),
    )
    assert page.name == "PAGE"
    with pytest.raises(DataError, match=r"partition-id is 2; .*roles\.jsonl\.gz has 2, .* lower simulation\.devices"):
        dealt("shakespeare", partition(2), path)


BAD_LINES = {
    "not JSON": "{broken",
    "no object": "[1, 2]",
    "no client": {"train": ["a"], "test": ["b"]},
    "no train": {"client": "X", "test": ["b"]},
    "speeches that are numbers": {"client": "X", "train": [1], "test": ["b"]},
    "null": "null",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=list(BAD_LINES))
def test_shakespeare_names_the_line_that_is(line: object, tmp_path: Path) -> None:
    path = gzipped(tmp_path / "roles.jsonl.gz", role("A", ["a"], ["b"]), line, role("B", ["a"], ["b"]))
    with pytest.raises(DataError, match=r"roles\.jsonl\.gz: line 2: not a role"):
        dealt("shakespeare", partition(0), path)


def test_shakespeare_names_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.gz: cannot be read: .*set data\.path to a roles\.jsonl\.gz"):
        dealt("shakespeare", partition(0), tmp_path / "absent.gz")


def test_shakespeare_refuses_a_file_that_is_not_compressed(tmp_path: Path) -> None:
    path = tmp_path / "roles.jsonl.gz"
    path.write_text(json.dumps(role("A", ["a"], ["b"])), encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        dealt("shakespeare", partition(0), path)


def test_shakespeare_refuses_a_file_that_was_cut_short(tmp_path: Path) -> None:
    path = gzipped(tmp_path / "roles.jsonl.gz", *(role(f"ROLE {n}", [f"speech {n * n}"] * n, ["b"]) for n in range(50)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        dealt("shakespeare", partition(0), path)


def test_shakespeare_refuses_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "roles.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"client": "\xff"}\n'))
    with pytest.raises(DataError, match=r"roles\.jsonl\.gz"):
        dealt("shakespeare", partition(0), path)


def test_the_real_roles_are_in_order_of_their_text_and_each_can_be_measured(shared: Path) -> None:
    path = shared / "data" / "tinyshakespeare" / "roles.jsonl.gz"
    roles = [dealt("shakespeare", partition(device), path) for device in range(50)]
    sizes = [role.train_bytes for role in roles]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0
    assert len({role.name for role in roles}) == 50
    assert all(role.held_out[0] for role in roles)


LINES = "".join(f"line {number:03d}\n" for number in range(100))


def test_files_of_a_device_are_split_and_those_of_others_left_alone(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / str(number) / "deep").mkdir(parents=True)
        (tmp_path / str(number) / "deep" / "b.txt").write_text(LINES + f"device {number}\n", encoding="utf-8")
        (tmp_path / str(number) / "a.txt").write_text("short\n", encoding="utf-8")
        (tmp_path / str(number) / "c.md").write_text("another kind", encoding="utf-8")
    data = dealt("files", partition(1), tmp_path)
    texts = "".join(map(text_of, data.train + data.held_out))
    assert sorted(texts.splitlines()) == sorted([*LINES.splitlines(), "device 1", "short"])
    assert data.name == "1"


def test_files_of_a_deployed_device_come_from_its_own_data_path(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(LINES, encoding="utf-8")
    for place in (tmp_path, tmp_path / "notes.txt"):
        data = dealt("files", {"data-path": str(place)}, "/nowhere")
        (train,), (held_out,) = map(text_of, data.train), map(text_of, data.held_out)
        assert train + held_out == LINES
        assert 0.1 <= len(held_out) / len(LINES) < 0.12


def test_files_names_a_folder_without_text(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    with pytest.raises(DataError, match=r"/0: no \*\.txt file below it"):
        dealt("files", partition(0), tmp_path)


def test_files_names_a_place_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder in it is a device's data; put one in for each device"):
        dealt("files", partition(3), tmp_path)


def test_files_names_the_file_and_the_byte_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"bad\.txt: not UTF-8 text: byte 3 is wrong"):
        dealt("files", partition(0), tmp_path)


def test_files_without_any_place_does_not_read_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private.txt").write_text(LINES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data-path"):
        dealt("files", {})


@pytest.mark.parametrize("name", ["stdlib", "shakespeare"])
def test_a_device_without_a_partition_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = gzipped(tmp_path / "roles.jsonl.gz", role("A", ["a"], ["b"]))
    with pytest.raises(DataError, match="partition-id"):
        dealt(name, {}, path)


@pytest.mark.parametrize("name", ["stdlib", "shakespeare"])
def test_a_device_of_a_negative_partition_is_refused(name: str, tmp_path: Path) -> None:
    path = gzipped(tmp_path / "roles.jsonl.gz", role("A", ["a"], ["b"]))
    with pytest.raises(DataError, match="partition-id is -1"):
        dealt(name, partition(-1), path)
