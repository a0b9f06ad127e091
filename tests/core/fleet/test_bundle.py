"""A bundle is written for its owner alone, read back as it was, and refused by the name of what is wrong in it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fedlora.errors import BundleError
from fedlora.fleet.bundle import MAX_BYTES, Bundle, read_bundle, write_bundle
from fedlora.fleet.keys import fingerprint_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny.bundles import bundle, bundle_fields, certificate, device_key, trusted_key, with_passphrase


def saved(path: Path, **changed: object) -> dict[str, object]:
    content: dict[str, object] = {"format": "fedlora-device-1"} | bundle_fields(**changed)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    path.chmod(0o600)
    return content


@pytest.mark.parametrize("curve", ["nistp256", "nistp384", "nistp521"])
def test_a_bundle_is_read_as_it_was_written(tmp_path: Path, curve: str) -> None:
    private, public = device_key(curve)
    trusted = {"fpk_1": trusted_key() + " of the server"}
    sound = bundle(private_key=private, public_key=public, trusted_entities=trusted, base_fingerprint="0f" * 32)
    write_bundle(sound, tmp_path / "b.json")
    assert read_bundle(tmp_path / "b.json") == sound


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604])
def test_a_bundle_with_a_key_that_others_may_read_is_refused_and_one_without_is_taken(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "b.json"
    write_bundle(bundle(), path)
    path.chmod(mode)
    if os.getuid() == 0 and mode == 0o640:  # root's, for a group: as keys are mounted into containers
        assert read_bundle(path).private_key
        return
    with pytest.raises(BundleError, match=rf"others may read or write it \(mode {mode:04o}\).* chmod 600 "):
        read_bundle(path)
    path.unlink()
    write_bundle(bundle(private_key=None), path)
    path.chmod(mode)
    assert read_bundle(path).private_key is None


def test_a_bundle_is_for_its_owner_alone_whatever_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_bundle(bundle(), tmp_path / "b.json")
    finally:
        os.umask(before)
    assert (tmp_path / "b.json").stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_is_not_written(tmp_path: Path) -> None:
    write_bundle(bundle(private_key=None), tmp_path / "b.json")
    content = json.loads((tmp_path / "b.json").read_text())
    assert content.keys() == {
        "format", "name", "superlink", "ca_certificate", "public_key", "issued", "expires",
    }  # fmt: skip
    assert read_bundle(tmp_path / "b.json").private_key is None


@pytest.mark.parametrize("is_link", [False, True])
def test_a_bundle_that_is_there_is_not_written_over(tmp_path: Path, is_link: bool) -> None:
    path = tmp_path / "b.json"
    if is_link:
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("a device's only key")
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(bundle(), path)
    assert is_link or path.read_text() == "a device's only key"
    assert not (tmp_path / "nowhere").exists()


def test_a_comment_of_the_public_key_is_left_out() -> None:
    _, public = device_key()
    assert bundle(public_key=public + " root@kitchen", private_key=None).public_key == public


def test_the_private_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(bundle())


def test_a_bundle_expires() -> None:
    sound = bundle(expires="2036-01-01T00:00:00Z")
    assert not sound.is_expired(datetime(2035, 12, 31, tzinfo=UTC))
    assert sound.is_expired(datetime(2036, 1, 1, tzinfo=UTC))


def another_pair() -> dict[str, object]:
    return {"private_key": device_key()[0]}


def locked() -> dict[str, object]:
    private, public = device_key()
    return {"private_key": with_passphrase(private), "public_key": public}


PEM = "-----BEGIN {0}-----\nAAAA\n-----END {0}-----\n"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": ""}, "name: ''"),
        ({"name": "../kitchen"}, "name: '../kitchen'"),
        ({"name": "a" * 65}, "1 to 64"),
        ({"name": "kitchen\n"}, "name: 'kitchen"),
        ({"superlink": "https://fleet.example.org:8443"}, "without https://"),
        ({"superlink": "fleet.example.org"}, "superlink"),
        ({"superlink": "fleet.example.org:0"}, "superlink"),
        ({"superlink": "fleet.example.org:65536"}, "superlink"),
        ({"superlink": "::1:8443"}, "superlink"),
        ({"superlink": "[fleet]:8443"}, "superlink"),
        ({"superlink": "256.1.1.1:8443"}, "superlink"),
        ({"superlink": "a b:1"}, "superlink"),
        ({"ca_certificate": "x"}, "ca_certificate: not PEM"),
        ({"ca_certificate": PEM.format("CERTIFICATE")}, "ca_certificate: its content is cut"),
        ({"ca_certificate": device_key()[0]}, "ca_certificate: OPENSSH PRIVATE KEY"),
        ({"ca_certificate": certificate() + "and more"}, "nothing around them"),
        ({"ca_certificate": certificate() * 9}, "1 to 8"),
        ({"public_key": "ssh-ed25519 AAAA"}, "public_key"),
        ({"public_key": trusted_key()}, "public_key: a key of type 'ssh-ed25519'"),
        ({"public_key": "ecdsa-sha2-nistp384 !"}, "not base64"),
        ({"public_key": device_key("nistp256")[1].replace("nistp256", "nistp384")}, "holds another type"),
        ({"public_key": device_key()[1][:-8]}, "public_key"),
        ({"public_key": device_key()[1] + "\n" + device_key()[1]}, "one line"),
        ({"private_key": PEM.format("PRIVATE KEY")}, "private_key: PRIVATE KEY"),
        ({"private_key": PEM.format("OPENSSH PRIVATE KEY")}, "private_key: not a key"),
        (another_pair(), "private_key: it belongs to another public_key"),
        (locked(), "passphrase"),
        ({"base_fingerprint": "nano"}, "base_fingerprint: 'nano'"),
        ({"trusted_entities": {"a b": trusted_key()}}, "trusted_entities: 'a b'"),
        ({"trusted_entities": {"fpk_1": device_key()[1]}}, "only ssh-ed25519"),
        ({"trusted_entities": {"fpk_1": 1}}, "trusted_entities must be an object"),
        ({"trusted_entities": {str(n): trusted_key() for n in range(17)}}, "at most 16"),
        ({"issued": "yesterday"}, "issued: 'yesterday'"),
        ({"issued": "2036-01-01T00:00:00Z"}, "must be after"),
        ({"name": 1}, "name must be a text, got int"),
        ({"name": None}, "name is missing"),
        ({"format": "fedlora-device-2"}, "format 'fedlora-device-2'"),
        ({"superlnik": "x"}, "did you mean superlink"),
    ],
)
def test_what_is_wrong_in_a_bundle_is_named(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    saved(tmp_path / "b.json", **changed)
    with pytest.raises(BundleError) as caught:
        read_bundle(tmp_path / "b.json")
    assert str(caught.value).startswith(f"{tmp_path / 'b.json'}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bundle_that_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    trusted = {str(n): f"{trusted_key()} {'x' * 5000}" for n in range(15)}
    with pytest.raises(BundleError, match=f"at most {MAX_BYTES}"):
        write_bundle(bundle(trusted_entities=trusted), tmp_path / "b.json")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "b.json"
    write_bundle(bundle(trusted_entities={"fpk_1": trusted_key()}, base_fingerprint="0f" * 32), path)
    return path.read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_bundle_is_refused_by_us_or_read_as_something_sound(
    tmp_path: Path, sound: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(sound)))
    end = data.draw(st.integers(start, min(len(sound), start + 40)))
    path = tmp_path / "b.json"
    path.write_bytes(sound[:start] + data.draw(st.binary(max_size=8)) + sound[end:])
    try:
        read = read_bundle(path)
    except BundleError as error:
        assert str(error).startswith(str(path))
        assert str(error).isprintable()
    else:
        assert isinstance(read, Bundle)
        path.unlink()
        write_bundle(read, path)
        assert read_bundle(path) == read


def test_a_key_has_the_fingerprint_that_ssh_keygen_prints(tmp_path: Path) -> None:
    # ssh-keygen -l -f of this line
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"  # github.com's host key
    assert fingerprint_of(key) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
