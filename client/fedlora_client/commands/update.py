"""`fedlora update`: the newest signed release, fetched, verified, tried, and put into use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from fedlora.commands.needed import needed
from fedlora.errors import ConfigError, ReleaseError, printable
from fedlora.release.channels import CHANNELS

from fedlora_client.service.config import FILE, DeviceConfig, home, read_device

if TYPE_CHECKING:
    from fedlora_client.updating.settings import UpdateSettings

needed("cryptography", "rfc8785", "tuf")

_PATH = click.Path(path_type=Path)
_CONFIG = click.option(
    "--config", "--dir", "path", type=_PATH, metavar="PATH",
    help=f"The device's {FILE}, or its folder.  [default: $FEDLORA_HOME/device, or ~/.fedlora/device]",
)  # fmt: skip
_TRUST = click.option(
    "--trust", "keys", multiple=True, type=_PATH, metavar="KEY.pub",
    help="A public key that releases may be signed by. May be repeated.",
)  # fmt: skip
_CHANNEL = click.option("--channel", type=click.Choice(CHANNELS), help="[default: stable]")
_NAME = click.option("--name", help="Of the release.")
_ROOT = click.option(
    "--root", type=_PATH, metavar="FILE", help="The root of the repository, from fedlora publish init."
)


@click.group(invoke_without_command=True)
@_CONFIG
@click.option("--status", "shows_status", is_flag=True, help="Tell what is in use, and what came of the last update.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
@click.option("--url", help="Of the repository, where there is no device.toml.")
@_CHANNEL
@_NAME
@_ROOT
@_TRUST
@click.option("--base", metavar="BASE", help="The base pack that is here.")
@click.option("--model", metavar="FOLDER", help="With exported graphs, to try canaries with.")
@click.option("--folder", type=_PATH, metavar="DIR", help="Of the releases of this device.")
@click.option("--watch", "watch_s", type=click.FloatRange(0), metavar="SECONDS", help="That a server must live.")
@click.pass_context
def update(ctx: click.Context, /, path: Path | None, shows_status: bool, as_json: bool, **options: Any) -> None:
    """Take the newest signed release of this device's adapter, once.

    What is fetched is verified, its canary tried, and the version swapped into the running `fedlora serve --releases`.
    What fails leaves the version in use, or brings it back. Exit status 0: it is in use, or was already; 1: none could be
    had, or it was refused.
    """
    if ctx.invoked_subcommand:
        ctx.obj = path
        return
    settings = _settings(path, options)
    from fedlora_client.updating.update import status, update

    if shows_status:
        told = status(settings)
        click.echo(json.dumps(told, indent=1) if as_json else "\n".join(_lines(told)))
        return
    attempt = update(settings)
    if as_json:
        click.echo(json.dumps({"result": attempt.result, "version": attempt.version, "told": attempt.told}))
    if attempt.result == "refused":
        raise ReleaseError(
            f"release {settings.name} {attempt.told}; what was in use is in use again: wait for a newer one"
        )
    if not as_json:
        click.echo(printable(attempt.told))


@update.command()
@click.argument("url")
@_CONFIG
@click.option("--root", required=True, type=_PATH, metavar="FILE", help="The root, from fedlora publish init.")
@click.option(
    "--trust", "keys", required=True, multiple=True, type=_PATH, metavar="KEY.pub",
    help="A public key that releases may be signed by. May be repeated.",
)  # fmt: skip
@click.option("--name", required=True, help="Of the release.")
@click.option("--channel", type=click.Choice(CHANNELS), default="stable", show_default=True)
@click.pass_obj
def init(
    above: Path | None, url: str, path: Path | None, root: Path, keys: tuple[Path, ...], name: str, channel: str
) -> None:
    """Pin the repository at URL in device.toml: its root, and whose releases are taken."""
    from fedlora_client.updating.configured import pin

    settings = pin(_file(path or above), url=url, name=name, channel=channel, root=root, keys=keys)
    click.echo(f"{_file(path or above)}: releases of {settings.name} from {url}, {channel}")
    click.echo("next: fedlora update")


def _settings(path: Path | None, options: Mapping[str, Any]) -> UpdateSettings:
    """From device.toml, or wholly from options."""
    from fedlora.files.at_rest import use_key

    from fedlora_client.updating.configured import settings_of
    from fedlora_client.updating.settings import UpdateSettings

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "url" not in given:
        other = sorted(given.keys() - {"folder"})
        if other:
            raise ConfigError(f"--{other[0]}: set in [update] of device.toml; pass it only together with --url")
        device = _device(path)
        use_key(device.device.at_rest_key)
        return settings_of(device, given.get("folder"))
    missing = sorted({"name", "root", "keys", "base", "folder"} - given.keys())
    if missing:
        words = ["--trust" if name == "keys" else f"--{name}" for name in missing]
        raise ConfigError(f"--url: expected {', '.join(words)} beside it, as there is no device.toml to say it")
    return UpdateSettings(**given)


def _device(path: Path | None) -> DeviceConfig:
    return read_device(_file(path))


def _file(path: Path | None) -> Path:
    path = path or home()
    path = path / FILE if path.is_dir() or path.suffix != ".toml" else path
    if not path.exists():
        raise ConfigError(
            f"{path}: there is no device; name its --config, or give all with options: fedlora update --url URL "
            "--name NAME --root ROOT --trust KEY.pub --base BASE --folder DIR"
        )
    return path


def _lines(told: Mapping[str, Any]) -> list[str]:
    """What `status` says, a line each."""

    def version(value: Mapping[str, Any] | None) -> str:
        return (
            f"{value['version']}, signed by {value['signer'][:16]}, digest {value['digest'][:16]}" if value else "none"
        )

    lines = [
        f"{told['name']}, channel {told['channel']}",
        f"in use     {version(told['current'])}" + ("" if told["is_confirmed"] else " (on trial)"),
        f"before     {version(told['previous'])}",
        f"newest     {told['newest'] or 'none'}",
        *(f"refused    {digest[:16]}: {why}" for digest, why in told["refused"].items()),
    ]
    served, last = told.get("served"), told["last_attempt"]
    if served:
        lines.append(f"served     {served}")
    if isinstance(last, Mapping):
        lines.append(f"last       {last.get('at')}: {last.get('result')}: {last.get('told')}")
    return [printable(line) for line in lines]
