"""`fedlora publish`: releases given out by The Update Framework, as static files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from fedlora.commands.needed import needed
from fedlora.release.channels import CHANNELS, Channel

if TYPE_CHECKING:
    from fedlora_server.distribution.repository import Repository

needed("cryptography", "rfc8785", "securesystemslib", "tuf")

_ADD = "release"
_KEYS = click.option(
    "--keys", type=click.Path(path_type=Path), metavar="DIR",
    help="The folder of its keys, with offline/ and online/.  [default: REPO-keys, beside it]",
)  # fmt: skip
_TRUST = click.option(
    "--trust", "trusted", required=True, multiple=True, type=click.Path(path_type=Path), metavar="KEY.pub",
    help="The public key that signed the release. May be repeated.",
)  # fmt: skip
_PASSPHRASE = click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Its first line is the passphrase of the offline keys; without it, one is asked for where they have one.",
)  # fmt: skip


class _Publish(click.Group):
    """`fedlora publish RELEASE` is the command for a release; the others have names."""

    default = _ADD

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Publish, subcommand_metavar="RELEASE --repo REPO | COMMAND [ARGS]...")
def publish() -> None:
    """Give out releases to devices: plain files for any web server, signed as The Update Framework has it."""


@publish.command(_ADD)
@click.argument("folder", metavar="RELEASE", type=click.Path(path_type=Path))
@click.option("--repo", required=True, type=click.Path(path_type=Path), help="The repository.")
@click.option("--channel", type=click.Choice(CHANNELS), default="stable", show_default=True)
@_TRUST
@_KEYS
@_PASSPHRASE
def add(
    folder: Path, repo: Path, channel: str, trusted: tuple[Path, ...], keys: Path | None, passphrase_file: Path | None
) -> None:
    """Give out RELEASE in a channel. (fedlora publish RELEASE does the same.)"""
    from fedlora.identity.keys import PublicKey

    release = _repository(repo, keys, passphrase_file).publish(
        folder, cast(Channel, channel), [PublicKey.read(path) for path in trusted],
        tell=lambda sentence: click.echo(f"warning: {sentence}", err=True),
    )  # fmt: skip
    click.echo(f"{release.manifest.name} {release.manifest.version} is in {channel} of {repo}")


@publish.command()
@click.argument("folder", metavar="RELEASE", type=click.Path(path_type=Path))
@click.argument("reference", metavar="HOST/NAME")
@_TRUST
@click.option("--plain-http", is_flag=True, help="Without TLS: of a registry on this machine.")
def oci(folder: Path, reference: str, trusted: tuple[Path, ...], plain_http: bool) -> None:
    """Push RELEASE to an OCI registry, tagged with its version; devices do not take it from there.

    Credentials: of docker login, or FEDLORA_REGISTRY_USER and FEDLORA_REGISTRY_PASSWORD.
    """
    from fedlora.identity.keys import PublicKey

    from fedlora_server.distribution.oci_registry import Registry

    release = Registry(reference, plain_http).publish(folder, [PublicKey.read(path) for path in trusted])
    click.echo(f"{release.manifest.name} {release.manifest.version} is {reference}:{release.manifest.version}")


@publish.command()
@click.argument("folder", metavar="RELEASE", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="OWNER/NAME")
@_TRUST
@click.option("--private", is_flag=True, help="Where the repository is not there yet: for its owner alone.")
def hub(folder: Path, repo_id: str, trusted: tuple[Path, ...], private: bool) -> None:
    """Upload RELEASE to a repository of the Hugging Face hub, its version as a tag; devices do not take it from there.

    The token is the hub's: HF_TOKEN, or hf auth login.
    """
    from fedlora.identity.keys import PublicKey

    from fedlora_server.distribution.hub_repository import HubRepository

    release = HubRepository(repo_id, private).publish(folder, [PublicKey.read(path) for path in trusted])
    click.echo(f"{release.manifest.name} {release.manifest.version} is v{release.manifest.version} of {repo_id}")


@publish.command()
@click.argument("repo", type=click.Path(path_type=Path))
@click.option("--root-keys", type=click.IntRange(1, 16), default=3, show_default=True, help="Keys of the root.")
@click.option("--threshold", type=click.IntRange(1, 16), default=2, show_default=True, help="Of them, that must sign.")
@click.option("--encrypt", is_flag=True, help="The offline keys under a passphrase, which is asked for.")
@_KEYS
@_PASSPHRASE
def init(
    repo: Path, root_keys: int, threshold: int, encrypt: bool, keys: Path | None, passphrase_file: Path | None
) -> None:
    """Make the folder REPO, its keys, and the root that devices pin."""
    from fedlora.commands.key import new_passphrase

    from fedlora_server.distribution.repository import Repository

    encrypt = encrypt or passphrase_file is not None
    repository = Repository(repo, keys or _keys_of(repo), cache(lambda: new_passphrase(passphrase_file)))
    first = repository.init(root_keys=root_keys, threshold=threshold, encrypt=encrypt)
    click.echo(
        f"{first}: the root; bring it to each device: fedlora update init URL --root 1.root.json --trust KEY.pub"
    )
    click.echo(
        f"{repository.keys / 'offline'}: move it to a medium of its own; publish and renew need it, refresh does not"
    )


@publish.command()
@click.argument("repo", type=click.Path(path_type=Path))
@_KEYS
def refresh(repo: Path, keys: Path | None) -> None:
    """Sign anew that what REPO gives out is the newest, by the online keys alone; once a day at least."""
    timestamp = _repository(repo, keys).refresh()
    click.echo(f"{repo}: what it gives out holds until {timestamp.expires:%Y-%m-%d %H:%M} UTC")


@publish.command()
@click.argument("repo", type=click.Path(path_type=Path))
@click.option(
    "--replace", "replaced", multiple=True, metavar="KEY",
    type=click.Choice(["targets", "snapshot", "timestamp", *(f"root-{number}" for number in range(1, 17))]),
    help="Make a new key in the place of this one, such as root-1. May be repeated.",
)  # fmt: skip
@_KEYS
@_PASSPHRASE
def renew(repo: Path, replaced: tuple[str, ...], keys: Path | None, passphrase_file: Path | None) -> None:
    """Sign root and targets anew, by the offline keys; once a year at least."""
    version = _repository(repo, keys, passphrase_file).renew(replaced)
    click.echo(f"{repo}: root {version}, which devices follow to from the one that they have")


def _repository(repo: Path, keys: Path | None, passphrase_file: Path | None = None) -> Repository:
    from fedlora.commands.key import passphrase_of

    from fedlora_server.distribution.repository import Repository

    folder = keys or _keys_of(repo)
    return Repository(repo, folder, cache(lambda: passphrase_of(f"the keys in {folder}", passphrase_file)))


def _keys_of(repo: Path) -> Path:
    return repo.with_name(f"{repo.name}-keys")
