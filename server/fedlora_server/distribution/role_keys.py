"""The keys of a repository's roles: Ed25519, each in a PEM file of mode 0600, the offline ones apart from the online ones.

    KEYS/offline/root-1.pem ...   sign which keys there are; any two of three by default
    KEYS/offline/targets.pem      signs which releases there are
    KEYS/online/snapshot.pem      signs that these metadata belong together
    KEYS/online/timestamp.pem     signs, again and again, that this is the newest

Who has the online keys alone can hold devices on what they have until the timestamp ends, and no more. The offline ones
belong on a medium that is not on a network, and may have a passphrase; `fedlora publish` needs them, and
`fedlora publish refresh` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedlora.errors import ConfigError, IdentityError
from fedlora.files.atomic import whole_file
from fedlora.files.ownership import read_secret
from fedlora.identity.keys import is_encrypted, private_pem
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

OFFLINE, ONLINE = "offline", "online"
TARGETS_ROLE, SNAPSHOT_ROLE, TIMESTAMP_ROLE, ROOT_ROLE = "targets", "snapshot", "timestamp", "root"
_FOLDER = {TARGETS_ROLE: OFFLINE, ROOT_ROLE: OFFLINE, SNAPSHOT_ROLE: ONLINE, TIMESTAMP_ROLE: ONLINE}
NEXT, REPLACED = ".next", ".replaced"  # of a key that no root names yet, and of one that none names any more
_MAX_BYTES = 1 << 14
Passphrase = Callable[[], bytes]  # asks for it, or has it


def key_path(keys: Path, name: str) -> Path:
    """The file of a key, by its name: `targets`, `root-1`."""
    return keys / _FOLDER[name.partition("-")[0]] / f"{name}.pem"


def root_names(keys: Path) -> list[str]:
    """The names of the root keys that are there."""
    return sorted(path.stem for path in (keys / OFFLINE).glob("root-*.pem"))


def new_key(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """Make a key and write it, under a passphrase if there is one. Raises IdentityError where something lies there."""
    if path.exists() or path.is_symlink():
        raise IdentityError(
            f"{path} exists already, and may be the only copy of a key; name another folder with --keys"
        )
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with whole_file(path, is_private=True) as aside:
        aside.write_bytes(private_pem(der, passphrase))
    return CryptoSigner(key)


def has_passphrase(path: Path) -> bool:
    """Whether the key in a file has one; not where there is none that can be read."""
    try:
        return is_encrypted(read_secret(path, _MAX_BYTES, "a key of a repository"))
    except (OSError, ConfigError):
        return False


def read_key(path: Path, passphrase: Passphrase | None = None) -> CryptoSigner:
    """The key in a file that nobody else may read; its passphrase is asked for where it has one.

    Raises IdentityError for anything else.
    """
    expected = "expected a key of this repository, as fedlora publish init made it; name its folder with --keys"
    asked = None
    if has_passphrase(path):
        if passphrase is None:
            raise IdentityError(f"{path}: it has a passphrase, and none was given; give --passphrase-file")
        asked = passphrase()
    try:
        key = serialization.load_pem_private_key(read_secret(path, _MAX_BYTES, "a key of a repository"), asked)
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; {expected}") from None
    except ConfigError as error:
        raise IdentityError(str(error)) from None
    except (ValueError, TypeError):
        told = "no private key in PEM" if asked is None else "no private key, or its passphrase is another one"
        raise IdentityError(f"{path}: {told}; {expected}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"{path}: a key of another kind than Ed25519; {expected}")
    return CryptoSigner(key)


def named_key(keys: Path, name: str, root: Root, passphrase: Passphrase | None = None) -> CryptoSigner:
    """The key called `targets` or `root-1`. Raises IdentityError where the root does not name it for its role."""
    path, role = key_path(keys, name), name.partition("-")[0]
    signer = read_key(path, passphrase)
    if signer.public_key.keyid not in root.roles[role].keyids:
        raise IdentityError(
            f"{path}: not the key that the root names for {role}; name this repository's own with --keys"
        )
    return signer


def settle(keys: Path, root: Root, passphrase: Passphrase | None = None) -> None:
    """Put each new key in its place that the root names, and take away those that no root came to name."""
    for aside in sorted(path for folder in (OFFLINE, ONLINE) for path in (keys / folder).glob(f"*{NEXT}")):
        role, path = aside.stem.partition("-")[0], aside.with_suffix(".pem")
        if read_key(aside, passphrase).public_key.keyid not in root.roles[role].keyids:
            aside.unlink()
            continue
        if path.exists():
            path.replace(path.with_suffix(REPLACED))
        aside.rename(path)
