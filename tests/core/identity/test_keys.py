"""Pairs of keys in files, and what they sign: cryptography and OpenSSL's own reader are the oracles."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from fedlora.errors import IdentityError, SignatureError
from fedlora.identity.keys import ED25519_BYTES, ML_DSA_65_BYTES, PublicKey, Signatures, SigningKey


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def other() -> SigningKey:
    return SigningKey.generate()


def test_a_pair_in_a_file_is_the_same_pair(key: SigningKey, tmp_path: Path) -> None:
    key.write(tmp_path / "key.pem")
    assert SigningKey.read(tmp_path / "key.pem").public == key.public
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_a_pair_with_a_passphrase_is_read_with_it_alone(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key.write(path, b"correct horse")
    assert path.read_bytes().count(b"BEGIN ENCRYPTED PRIVATE KEY") == 2
    assert SigningKey.read(path, b"correct horse").public == key.public
    with pytest.raises(IdentityError, match="none was given; give its passphrase"):
        SigningKey.read(path)
    with pytest.raises(IdentityError, match="the passphrase is another one"):
        SigningKey.read(path, b"battery staple")
    with pytest.raises(IdentityError, match="passphrase is empty"):
        key.write(tmp_path / "another.pem", b"")


def test_a_passphrase_for_a_pair_without_one_is_not_needed(key: SigningKey, tmp_path: Path) -> None:
    key.write(tmp_path / "key.pem")
    assert SigningKey.read(tmp_path / "key.pem", b"given to all of them").public == key.public


def test_a_file_is_never_written_over(key: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "key.pem").symlink_to(tmp_path / "nowhere")
    with pytest.raises(IdentityError, match="exists already"):
        key.write(tmp_path / "key.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


def test_a_private_file_that_others_read_is_refused(key: SigningKey, tmp_path: Path) -> None:
    key.write(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o640)
    if os.getuid() == 0:
        (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(IdentityError, match="others may read or write it"):
        SigningKey.read(tmp_path / "key.pem")


def test_the_public_file_holds_two_standard_blocks_whose_digest_is_the_id(key: SigningKey, tmp_path: Path) -> None:
    key.public.write(tmp_path / "key.pub")
    text = (tmp_path / "key.pub").read_bytes()
    blocks = [b"-----BEGIN" + each for each in text.split(b"-----BEGIN")[1:]]
    first, second = map(serialization.load_pem_public_key, blocks)
    assert isinstance(first, Ed25519PublicKey)
    assert isinstance(second, MLDSA65PublicKey)
    ders = [
        each.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for each in (first, second)
    ]
    assert key.public.keyid == hashlib.sha256(b"".join(ders)).hexdigest()
    assert PublicKey.read(tmp_path / "key.pub") == key.public
    signatures = key.sign(b"message")
    first.verify(signatures.ed25519, b"message")
    second.verify(signatures.ml_dsa_65, b"message")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_first_block(key: SigningKey, tmp_path: Path) -> None:
    key.write(tmp_path / "key.pem", b"a passphrase")
    told = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "key.pem", "-passin", "pass:a passphrase", "-pubout", "-outform", "DER"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert told.stdout == key.public.ed25519


def test_a_passphrase_is_stretched_by_scrypt(key: SigningKey, tmp_path: Path) -> None:
    key.write(tmp_path / "key.pem", b"a passphrase")
    block = (tmp_path / "key.pem").read_text().partition("-----END")[0].splitlines()[1:]
    der = base64.b64decode("".join(block))
    assert bytes.fromhex("2b06010401da47040b") in der  # RFC 7914, section 7: id-scrypt
    assert bytes.fromhex("02024000 020108 020105 020120") in der  # N = 16384, r = 8, p = 5, 32 bytes


def test_both_signatures_must_hold(key: SigningKey, other: SigningKey) -> None:
    good, foreign = key.sign(b"message"), other.sign(b"message")
    assert (len(good.ed25519), len(good.ml_dsa_65)) == (ED25519_BYTES, ML_DSA_65_BYTES)
    key.public.verify(b"message", good)
    for bad in (
        Signatures(foreign.ed25519, good.ml_dsa_65),
        Signatures(good.ed25519, foreign.ml_dsa_65),
        Signatures(good.ml_dsa_65, good.ed25519),
        Signatures(good.ed25519, b""),
        Signatures(b"", good.ml_dsa_65),
        Signatures(good.ed25519[:-1] + bytes([good.ed25519[-1] ^ 1]), good.ml_dsa_65),
        Signatures(good.ed25519, good.ml_dsa_65[:-1] + bytes([good.ml_dsa_65[-1] ^ 1])),
    ):
        with pytest.raises(SignatureError, match="does not hold"):
            key.public.verify(b"message", bad)
    with pytest.raises(SignatureError):
        key.public.verify(b"Message", good)


def test_a_file_that_holds_no_pair_is_refused(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key.write(path)
    private, public = path.read_text(), key.public.to_pem()
    first, second = (private[: private.index("-----BEGIN", 1)], private[private.index("-----BEGIN", 1) :])
    for text in (
        "",
        "no key",
        public,
        first,
        second + first,
        first + first,
        private + first,
        private + "more",
        "x" + private,
    ):
        path.write_text(text)
        with pytest.raises(IdentityError, match=r"expected two blocks, of Ed25519 and of ML-DSA-65"):
            SigningKey.read(path)
    first, second = (public[: public.index("-----BEGIN", 1)], public[public.index("-----BEGIN", 1) :])
    for text in (
        "",
        "no key",
        private,
        first,
        second + first,
        first + first,
        public + "more",
        public + "\n" * 20_000 + "x",
    ):
        with pytest.raises(IdentityError, match=r"expected two blocks, of Ed25519 and of ML-DSA-65"):
            PublicKey.from_pem(text)
    with pytest.raises(IdentityError, match="cannot be read"):
        PublicKey.read(tmp_path / "nowhere")
    with pytest.raises(IdentityError, match="cannot be read"):
        SigningKey.read(tmp_path)


def test_a_pair_cut_at_any_byte_is_refused_or_the_same_pair(key: SigningKey) -> None:
    text = key.public.to_pem()
    assert PublicKey.from_pem(text[:-1]) == key.public  # without the last line break
    for length in range(len(text) - 1):
        with pytest.raises(IdentityError):
            PublicKey.from_pem(text[:length])


def test_nothing_of_a_private_key_is_shown(key: SigningKey) -> None:
    assert "object" not in repr(key)
    assert repr(key) == "SigningKey()"
