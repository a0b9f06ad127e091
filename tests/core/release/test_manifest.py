"""The manifest of a release: read back as it was written, and refused where anything of it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rfc8785
from fedlora.errors import FedloraError, IdentityError, ReleaseError
from fedlora.release.canary import Canary, CanaryText
from fedlora.release.layout import check_name, check_path
from fedlora.release.manifest import manifest_from_json, moment, written
from fedlora.release.manifest_parts import FileEntry, Parent, Privacy

from tests.tiny.releases import NOW, a_manifest

FULL = a_manifest(
    evaluation={"mean": 2.25, "worst_tenth": 3.0},
    privacy=Privacy(epsilon=1.5, delta=1e-6),
    canary=Canary(texts=(CanaryText(text="The kitchen", max_loss=3.5), CanaryText(text="é", label="warm"))),
    parent=Parent(version=2, manifest_sha256="e" * 64),
)


@pytest.mark.parametrize("manifest", [a_manifest(), FULL], ids=["least", "full"])
def test_a_manifest_is_read_back_equal(manifest: Any) -> None:
    assert manifest_from_json(manifest.to_json(), "x") == manifest


def test_its_form_is_that_of_rfc_8785() -> None:
    content = FULL.to_json()
    assert rfc8785.dumps(json.loads(content)) == content


@pytest.mark.parametrize("spoil", [b" ", b"\n"])
def test_another_form_of_the_same_json_is_refused(spoil: bytes) -> None:
    with pytest.raises(IdentityError, match="RFC 8785"):
        manifest_from_json(FULL.to_json() + spoil, "x")


def changed(path: str, value: Any) -> bytes:
    """FULL with one value replaced, or taken out where the value is Ellipsis."""
    content = json.loads(FULL.to_json())
    *parents, last = path.split("|")
    place = content
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return rfc8785.dumps(content)


WRONG: list[tuple[str, Any]] = [
    ("format", "other"),
    ("format_version", 2),
    ("name", "tone/x"),
    ("name", "tоne"),  # noqa: RUF001  the second letter is Cyrillic
    ("name", ".tone"),
    ("name", ["tone"]),
    ("version", 0),
    ("version", True),
    ("version", 1.5),
    ("version", "3"),
    ("version", ...),
    ("unknown", 1),
    ("issued", "2026-12-01"),
    ("issued", "2026-12-1T12:00:00Z"),
    ("expires", "2026-12-01T12:00:00Z"),
    ("expires", None),
    ("base", None),
    ("base|fingerprint", "A" * 64),
    ("base|source", "a\nb"),
    ("adapter|rank", 0),
    ("adapter|rank", 5000),
    ("adapter|alpha", -1),
    ("adapter|target_modules", []),
    ("adapter|target_modules", "q_proj"),
    ("adapter|target_modules", [1]),
    ("adapter|modules", 0),
    ("run|devices", -1),
    ("run|examples", 1.5),
    ("run|method", ""),
    ("privacy|epsilon", -1),
    ("privacy", 3),
    ("evaluation", [1]),
    ("evaluation|mean", "2"),
    ("canary", {"texts": []}),
    ("canary", {"texts": [{"text": "x"}]}),
    ("canary", {"texts": [{"text": "x", "max_loss": 1, "label": "y"}]}),
    ("canary", {"texts": [{"text": "", "max_loss": 1}]}),
    ("canary", {"texts": [{"text": "x", "max_loss": 0}]}),
    ("canary|texts|0|other", 1),
    ("parent|version", 3),
    ("made_by|command", ""),
    ("made_by|versions", {"a": 1}),
    ("files", {}),
    ("files", []),
    ("files", {"../x": {"sha256": "d" * 64, "size_bytes": 1}}),
    ("files", {"/x": {"sha256": "d" * 64, "size_bytes": 1}}),
    ("files", {"x": {"sha256": "d" * 64, "size_bytes": -1}}),
    ("files", {"x": {"sha256": "d" * 64, "size_bytes": 1 << 40}}),
    ("files", {"x": {"sha256": "d" * 63, "size_bytes": 1}}),
    ("files", {"x": {"sha256": "d" * 64}}),
    ("files", {n: {"sha256": "d" * 64, "size_bytes": 1} for n in ("x", "X")}),
    ("files", {str(n): {"sha256": "d" * 64, "size_bytes": 1} for n in range(65)}),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: f"{value!r:.30}")
def test_a_manifest_with_a_wrong_value_is_refused_in_our_words(path: str, value: Any) -> None:
    with pytest.raises(ReleaseError, match=r"^signed\.json: "):
        manifest_from_json(changed(path, value), "signed.json")


def test_cut_anywhere_it_is_refused() -> None:
    content = FULL.to_json()
    for length in range(len(content)):
        with pytest.raises(FedloraError):
            manifest_from_json(content[:length], "x")


@pytest.mark.parametrize("name", ["a", "billing-v2", "A.b_c-9", "x" * 64])
def test_names_that_can_be(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "a..b", "-a", "a-", "a b", "a\n", "ａ", "x" * 65, "аdmin"])  # noqa: RUF001
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(ReleaseError, match="cannot be called"):
        check_name(name)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/etc/passwd", "../x", "a/../b", "a/b/c", "a//b", "a/", ".hidden", "a\\b", "a\0", "\uff41", "release.json",
     "model.sig", "a\n"],
)  # fmt: skip
def test_paths_that_leave_the_folder_or_are_not_plain_are_refused(path: str) -> None:
    with pytest.raises(ReleaseError, match="files: "):
        check_path(path)


def test_it_expires_at_its_second() -> None:
    end = moment(a_manifest().expires, "expires")
    assert not a_manifest().is_expired(end - timedelta(seconds=1))
    assert a_manifest().is_expired(end)
    assert written(NOW) == "2026-12-01T12:00:00Z"
    assert moment(written(NOW), "x") == NOW.astimezone(UTC)
    assert moment("2026-12-01T12:00:00Z", "x") == datetime(2026, 12, 1, 12, tzinfo=UTC)


def test_a_parent_is_older() -> None:
    with pytest.raises(ReleaseError, match="parent"):
        replace(FULL, version=2)
    assert FileEntry(sha256="0" * 64, size_bytes=0).size_bytes == 0
