"""`fedlora key`: pairs of keys that sign, as files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedlora.commands.needed import needed
from fedlora.errors import ConfigError, IdentityError
from fedlora.files.atomic import whole_file
from fedlora.files.ownership import read_secret

if TYPE_CHECKING:
    from fedlora.identity.keys import SigningKey

needed("cryptography", "rfc8785")  # which the commands import when they run

_MAX_BYTES = 1 << 12  # of a passphrase
_passphrase = click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Its first line is the passphrase; without it, one is asked for where it is needed.",
)  # fmt: skip


@click.group()
def key() -> None:
    """Make and look at keys that sign, and the key of files at rest.

    Those that sign are pairs of Ed25519 and ML-DSA-65, and both must verify.
    """


@key.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--encrypt", is_flag=True, help="Under a passphrase, which is asked for.")
@_passphrase
def new(path: Path, encrypt: bool, passphrase_file: Path | None) -> None:
    """Make a pair: FILE is the private half, for its owner alone, and FILE.pub the public one."""
    from fedlora.identity.keys import SigningKey

    public = _free(_beside(path, ".pub"))
    passphrase = new_passphrase(passphrase_file) if encrypt or passphrase_file else None
    made = SigningKey.generate()
    made.write(path, passphrase)
    made.public.write(public)
    click.echo(f"{path}: key {made.public.keyid}; its public half is {public}")


@key.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@_passphrase
def show(path: Path, passphrase_file: Path | None) -> None:
    """Print the id of the pair in FILE, which may be either half, and its public half."""
    from fedlora.files.bounded import read_bounded
    from fedlora.identity.keys import MAX_BYTES, PublicKey

    try:
        is_private = b"PRIVATE KEY-----" in read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; expected a pair of keys") from None
    found = read_pair(path, passphrase_file).public if is_private else PublicKey.read(path)
    click.echo(f"key {found.keyid}")
    click.echo(found.to_pem(), nl=False)


@key.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="NEW", help="The new pair.")
@click.option("--encrypt", is_flag=True, help="The new one under a passphrase, which is asked for.")
@_passphrase
def rotate(path: Path, output: Path, encrypt: bool, passphrase_file: Path | None) -> None:
    """Make a pair that takes the place of the one in FILE: NEW, NEW.pub, and NEW.rotated.json, signed by the old one.

    Whoever trusts the old key takes the new one by that statement; the passphrase file is for both.
    """
    from fedlora.identity.keys import SigningKey
    from fedlora.identity.rotation import rotated

    public, statement = _free(_beside(output, ".pub")), _free(_beside(output, ".rotated.json"))
    old = read_pair(path, passphrase_file)
    passphrase = new_passphrase(passphrase_file) if encrypt or passphrase_file else None
    made = SigningKey.generate()
    said = rotated(old, made.public, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    made.write(output, passphrase)
    made.public.write(public)
    with whole_file(statement) as aside:
        aside.write_bytes(said)
    click.echo(f"{output}: key {made.public.keyid}, in place of {old.public.keyid}; {statement} says so")


@key.command("at-rest")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def at_rest(path: Path) -> None:
    """Make the key that files at rest are encrypted under: at_rest_key = "file:FILE"."""
    from fedlora.files.at_rest_key import write_new_key

    click.echo(f"{path}: key {write_new_key(path).id.hex()}; who loses it loses what was encrypted under it")


@key.command()
@click.argument("places", metavar="PLACE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--old", required=True, metavar="SOURCE", help="Of the key until now: file:PATH, env:VARIABLE, keyring:NAME."
)
@click.option("--new", metavar="SOURCE", help="Of the key from now on.")
@click.option("--plain", is_flag=True, help="Decrypt them, instead.")
def rewrap(places: tuple[Path, ...], old: str, new: str | None, plain: bool) -> None:
    """Bring all encrypted files in PLACEs under another key; stop what writes there first.

    Each file is changed whole; a call that was cut off is called again.
    """
    from fedlora.files.at_rest_key import read_key
    from fedlora.files.rewrapping import rewrapped

    if plain == bool(new):
        raise ConfigError("--new: expected it, or --plain; give one of the two")
    count = rewrapped(places, read_key(old), read_key(new) if new else None)
    click.echo(f"{'decrypted' if plain else 'under the new key'}: {count}")


def read_pair(path: Path, passphrase_file: Path | None) -> SigningKey:
    """The pair in a file; its passphrase is asked for where it has one and no file holds it."""
    from fedlora.identity.keys import MAX_BYTES, SigningKey, is_encrypted

    try:
        is_sealed = is_encrypted(read_secret(path, MAX_BYTES, "a signing key"))
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; expected a signing key") from None
    if not is_sealed:
        return SigningKey.read(path)
    return SigningKey.read(path, passphrase_of(str(path), passphrase_file))


def new_passphrase(passphrase_file: Path | None) -> bytes:
    """Of a key that is made: from the file, or asked for twice."""
    return _line_of(passphrase_file) if passphrase_file else _asked("Passphrase of the new key", is_new=True)


def passphrase_of(what: str, passphrase_file: Path | None) -> bytes:
    """Of keys that are there: from the file, or asked for."""
    return _line_of(passphrase_file) if passphrase_file else _asked(f"Passphrase of {what}", is_new=False)


def _asked(prompt: str, *, is_new: bool) -> bytes:
    text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=is_new, err=True)
    return text.encode()


def _line_of(path: Path) -> bytes:
    try:
        line = read_secret(path, _MAX_BYTES, "--passphrase-file").partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise ConfigError(f"--passphrase-file {path}: {error.strerror}; name a file with the passphrase") from None
    if not line:
        raise ConfigError(f"--passphrase-file {path}: its first line is empty; expected the passphrase")
    return line


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _free(path: Path) -> Path:
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already; name another file")
    return path
