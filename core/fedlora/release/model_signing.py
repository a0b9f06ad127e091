"""model.sig: the files of a release as OpenSSF model signing has them, for its own command `model_signing verify key`.

A Sigstore bundle around a DSSE envelope around an in-toto statement: the sha256 of every file by its path, in order, and
as the subject the sha256 over all of these digests. The command's keys are elliptic ones on NIST curves (ECDSA), and
`model_signing` 1.1.1 takes no Ed25519 key: so a key for it is a further one, P-256 in PEM, and its signature is no hybrid.
fedlora itself takes release.json alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.errors import IdentityError
from fedlora.files.ownership import read_secret
from fedlora.identity.envelope import pre_authentication
from fedlora.release.layout import BUNDLE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_IN_TOTO = "application/vnd.in-toto+json"
_MAX_KEY_BYTES = 1 << 14
# What the verifier passes over: the bundle, and what a clone of a hub's repository has beside a model.
_IGNORED = [BUNDLE, ".git", ".gitattributes", ".github", ".gitignore"]


def read_model_key(path: Path) -> EllipticCurvePrivateKey:
    """A private key on P-256 in PEM. Raises IdentityError for any other."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    expected = "expected a key on P-256 in PEM: openssl ecparam -name prime256v1 -genkey -noout -out FILE"
    try:
        key = serialization.load_pem_private_key(read_secret(path, _MAX_KEY_BYTES, "--model-signing-key"), None)
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; {expected}") from None
    except (ValueError, TypeError):
        raise IdentityError(f"{path}: no private key without a passphrase; {expected}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{path}: a key of another kind; {expected}")
    return key


def bundle_text(name: str, digests: Mapping[str, str], key: EllipticCurvePrivateKey) -> str:
    """The bundle over {path: sha256} of all files of a folder called `name`, but the bundle itself."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ordered = sorted(digests.items())
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": _IGNORED,
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in ordered],
        },
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    signature = key.sign(pre_authentication(payload, _IN_TOTO), ec.ECDSA(hashes.SHA256()))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(public).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _IN_TOTO,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, indent=2) + "\n"
