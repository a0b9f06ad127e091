"""A release in a folder: signed by whom it must be, each file as it was signed, no link, nothing beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import FedloraError, IdentityError, ReleaseError, SignatureError
from fedlora.identity.keys import SigningKey
from fedlora.release.acceptance import check_acceptable
from fedlora.release.folder import adapter_paths, read_release
from fedlora.release.layout import ENVELOPE
from fedlora.release.sealed import PAYLOAD_TYPE, open_release, seal_release

from tests.tiny.releases import NOW, a_manifest, write_release

WEIGHTS, CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
KEY, OTHER = SigningKey.generate(), SigningKey.generate()


@pytest.fixture
def folder(tmp_path: Path, base: BasePack) -> Path:
    write_release(tmp_path / "r", base, KEY)
    return tmp_path / "r"


def test_a_release_is_read_with_its_signer(folder: Path, base: BasePack) -> None:
    release = read_release(folder, [OTHER.public, KEY.public])
    assert release.signer == KEY.public.keyid
    assert release.manifest.base.fingerprint == base.fingerprint
    assert sorted(adapter_paths(release.manifest)) == [CONFIG, WEIGHTS]
    assert sorted(release.manifest.files) == [CONFIG, WEIGHTS]


def test_another_key_is_not_trusted(folder: Path) -> None:
    with pytest.raises(SignatureError, match=f"signed by {KEY.public.keyid[:16]}"):
        read_release(folder, [OTHER.public])
    with pytest.raises(SignatureError):
        read_release(folder, [])


def test_an_adapter_that_was_exchanged_is_refused(folder: Path, tmp_path: Path, base: BasePack) -> None:
    write_release(tmp_path / "other", base, KEY, seed=2)
    (tmp_path / "other" / WEIGHTS).replace(folder / WEIGHTS)
    with pytest.raises(ReleaseError, match=r"sha256 .* not what was signed"):
        read_release(folder, [KEY.public])


def test_a_manifest_of_another_release_is_refused(folder: Path, tmp_path: Path, base: BasePack) -> None:
    write_release(tmp_path / "other", base, KEY, seed=2)
    (tmp_path / "other" / ENVELOPE).replace(folder / ENVELOPE)
    with pytest.raises(ReleaseError, match="not what was signed"):
        read_release(folder, [KEY.public])


def linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def linked_folder(folder: Path) -> None:
    (folder / "adapter").rename(folder.parent / "elsewhere")
    (folder / "adapter").symlink_to(folder.parent / "elsewhere")


def linked_envelope(folder: Path) -> None:
    (folder / ENVELOPE).rename(folder.parent / "elsewhere")
    (folder / ENVELOPE).symlink_to(folder.parent / "elsewhere")


def strange(folder: Path) -> None:
    (folder / "adapter" / "chat_template.jinja").write_text("{{ 1 }}")


def missing(folder: Path) -> None:
    (folder / CONFIG).unlink()


def cut(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(100)


def longer(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0")


def pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def without_envelope(folder: Path) -> None:
    (folder / ENVELOPE).unlink()


def crowded(folder: Path) -> None:
    for number in range(300):
        (folder / str(number)).touch()


@pytest.mark.parametrize(
    "spoil",
    [linked, linked_folder, linked_envelope, strange, missing, cut, longer, pipe, without_envelope, crowded],
    ids=lambda spoil: spoil.__name__,
)
def test_a_folder_that_was_tampered_with_is_refused(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(ReleaseError):
        read_release(folder, [KEY.public])


def test_a_device_may_have_the_files_alone_that_it_asks_for(folder: Path) -> None:
    (folder / CONFIG).unlink()
    read_release(folder, [KEY.public], [WEIGHTS])
    with pytest.raises(ReleaseError, match="missing"):
        read_release(folder, [KEY.public], [WEIGHTS, CONFIG])


def test_an_envelope_cut_at_any_byte_is_refused() -> None:
    content = seal_release(a_manifest(), KEY)
    for length in range(len(content)):
        with pytest.raises(IdentityError):
            open_release(content[:length], [KEY.public], "x")


def test_a_flipped_bit_anywhere_is_found() -> None:
    content = seal_release(a_manifest(), KEY)
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        with pytest.raises(FedloraError):
            open_release(bytes(flipped), [KEY.public], "x")


def test_what_was_signed_as_something_else_is_no_release() -> None:
    from fedlora.identity.envelope import seal

    with pytest.raises(IdentityError, match="of type"):
        open_release(seal(a_manifest().to_json(), PAYLOAD_TYPE + "x", KEY), [KEY.public], "x")
    with pytest.raises(FedloraError):
        open_release(seal(b"{}", PAYLOAD_TYPE, KEY), [KEY.public], "x")


@pytest.mark.parametrize(
    ("changed", "asked", "told"),
    [
        ({}, {"name": "other"}, "expected a release of other"),
        ({}, {"newest": 4}, "rollback is refused"),
        ({"issued": "2025-01-01T00:00:00Z", "expires": "2026-12-01T12:00:00Z"}, {}, "expired"),
        ({}, {"base_fingerprint": "f" * 64}, "for the base"),
        ({}, {"max_bytes": 9}, "at most 9 are taken"),
    ],
)
def test_what_is_signed_may_still_not_be_taken(changed: dict[str, str], asked: dict[str, object], told: str) -> None:
    usual: dict[str, object] = {
        "name": "tone", "base_fingerprint": "a" * 64, "newest": 3, "max_bytes": 10, "now": NOW,
    }  # fmt: skip
    check_acceptable(a_manifest(), **usual)  # type: ignore[arg-type]
    with pytest.raises(ReleaseError, match=told):
        check_acceptable(a_manifest(**changed), **{**usual, **asked})  # type: ignore[arg-type]
