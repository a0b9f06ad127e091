"""`fedlora server`: a fleet's server, from its first certificate to its last round."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from fedlora.base.pack import EMBEDDED
from fedlora.errors import printable

if TYPE_CHECKING:
    from fedlora.config.run import Scalar

    from fedlora_server.fleet.settings import FleetSettings

for _part in ("cryptography", "flwr"):  # which the commands import when they run
    if find_spec(_part) is None:
        raise ImportError(f"there is no {_part}")

_FOLDER = click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default="fleet")
_AT = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default="fleet", show_default=True, help="The fleet's folder."
)


@click.group()
def server() -> None:
    """Run the server of a fleet: devices that are enrolled, TLS, Flower underneath."""


@server.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    metavar="NAME",
    help="A name or address by which devices reach this server; the first goes into bundles. May be repeated.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8443, show_default=True, help="The port that devices reach."
)
@click.option(
    "--listen-port",
    type=click.IntRange(1, 65535),
    help="Of SuperLink on this machine.  [default: the port, and the one after it behind nginx]",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the runs' configuration, as in a scenario. May be repeated.",
)
def init(folder: Path, hosts: tuple[str, ...], port: int, listen_port: int | None, changes: tuple[str, ...]) -> None:
    """Make DIR: settings, a private CA, a TLS certificate, the key that signs the fleet's app."""
    from fedlora.base.pack import open_pack
    from fedlora.config.run import RunConfig, changed
    from fedlora.errors import FedloraError

    from fedlora_server.fleet.making import make_fleet
    from fedlora_server.fleet.settings import LOOPBACK, FleetSettings, placed

    default = RunConfig.from_flat({"name": "fleet", "data.name": "files"}, "--set")
    run = changed(default, changes)
    plain = RunConfig().flat()
    flat = {key: value for key, value in run.flat().items() if value != plain[key]}
    chosen: dict[str, Scalar] = {
        "base": placed(run.base, Path.cwd()),
        "server.rounds": run.server.rounds,
        "server.min_devices": run.server.min_devices,
    }
    is_local = all(host in LOOPBACK for host in hosts)
    settings = FleetSettings(
        folder=folder.absolute(), host=hosts[0], names=hosts[1:], port=port,
        listen_port=listen_port or (port if is_local or port == 65535 else port + 1), run=flat | chosen,
    )  # fmt: skip
    make_fleet(settings)
    click.echo(f"{folder}: a fleet's server at {settings.address}; its certificate is valid for a year, its CA for ten")
    if not is_local:
        click.echo(
            f"SuperLink listens on {settings.control}; {folder}/nginx.conf lets devices reach its Fleet API, and no more"
        )
    try:
        open_pack(str(chosen["base"]))
    except FedloraError as error:
        click.echo(f"warning: run.base: {error}; until then bundles do not name the fleet's base", err=True)
    click.echo(f"next: fedlora server enrol NAME --dir {folder}")


@server.command()
@_FOLDER
@click.option(
    "--identity",
    "is_identity",
    is_flag=True,
    help="Renew the pair that signs instead; the one before signs the new one, and devices follow by themselves.",
)
def rotate(folder: Path, is_identity: bool) -> None:
    """Renew the server's certificate under the same CA; devices notice nothing."""
    from fedlora_server.fleet.authority import expiry
    from fedlora_server.fleet.making import renew_certificate

    settings = _settings(folder)
    if is_identity:
        _rotate_identity(settings)
        return
    renew_certificate(settings)
    until = expiry(settings.at("tls", "server.crt"))
    click.echo(
        f"{settings.at('tls', 'server.crt')}: valid until {until:%Y-%m-%d}; restart fedlora server run, reload nginx"
    )


@server.command()
@click.argument("name")
@_AT
@click.option(
    "--public-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The .pub file of a key that the device made itself; without it, one is made here.",
)
@click.option(
    "--identity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The identity.key.pub beside it, of the pair by which that device signs its answers.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the bundle goes.  [default: NAME.json]",
)
def enrol(name: str, folder: Path, public_key: Path | None, identity: Path | None, output: Path | None) -> None:
    """Let a device in, and write the bundle by which it joins: fedlora device join FILE.

    A bundle with a private key is for the device alone: bring it there, and leave no copy.
    """
    from fedlora_server.fleet.enrolment import enrol_device
    from fedlora_server.fleet.identity import signs

    settings, file = _settings(folder), output or Path(f"{name}.json")
    entry = enrol_device(settings, name, public_key, file, datetime.now(UTC), identity)
    known = (
        "SuperLink knows its key"
        if entry.node is not None
        else "SuperLink learns its key when fedlora server run starts"
    )
    click.echo(f"{file}: the bundle of {name}; {known}")
    if signs(settings.folder) and not entry.identity:
        click.echo(f"warning: {name} signs nothing: it was enrolled without --identity", err=True)
    click.echo(f"next, on that device: fedlora device join {file.name} --base {_named(settings.run)} --data DATA")


@server.command()
@click.argument("name")
@click.argument("statement", type=click.Path(path_type=Path))
@_AT
def rekey(name: str, statement: Path, folder: Path) -> None:
    """Let a device sign with the pair that its pair before has signed: STATEMENT is what `fedlora key rotate` wrote."""
    from fedlora.identity.keys import PublicKey

    from fedlora_server.fleet.enrolment import rekey_device

    entry = rekey_device(_settings(folder), name, statement)
    click.echo(f"{name} signs with {PublicKey.from_pem(entry.identity).keyid:.16}; the pair before counts no more")


@server.command()
@click.argument("name")
@_AT
def revoke(name: str, folder: Path) -> None:
    """Let a device in no more: its answers count no longer from this moment on."""
    from fedlora_server.fleet.enrolment import revoke_device

    told = revoke_device(_settings(folder), name, datetime.now(UTC))
    click.echo(f"{name} is revoked" + ("" if told else "; SuperLink does not run, and will be told when it starts"))


@server.command()
@_FOLDER
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the run's configuration. May be repeated.",
)
@click.option("--new", "is_new", is_flag=True, help="Leave a run that is under way, and begin another.")
def run(folder: Path, changes: tuple[str, ...], is_new: bool) -> None:
    """Run the fleet's server in the foreground until its run is over; SIGTERM or Ctrl-C ends it before.

    A server that was stopped or killed goes on after the last committed round. Exit status: 0 for a run that
    completed, 1 for one that failed, 3 where a signal came first.
    """
    from fedlora_server.fleet.serving import serve_fleet

    settings = _settings(folder)
    if serve_fleet(settings, changes, _tell, is_new=is_new):
        from fedlora_server.fleet.status import fleet_status

        _tell(f"the run is complete: {fleet_status(settings).adapter}")
        return
    _tell("stopped; fedlora server run goes on after the last committed round")
    sys.exit(3)


@server.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(folder: Path, as_json: bool) -> None:
    """Show the run, the devices that are connected and missing, and how long the certificates are valid."""
    from fedlora_server.fleet.status import fleet_status, status_lines

    found = fleet_status(_settings(folder))
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else "\n".join(map(printable, status_lines(found))))


@server.command()
@_FOLDER
@click.option("--units-dir", type=click.Path(path_type=Path), default="/etc/systemd/system", show_default=True)
@click.option("--users-dir", type=click.Path(path_type=Path), default="/etc/sysusers.d", show_default=True)
def units(folder: Path, units_dir: Path, users_dir: Path) -> None:
    """Write systemd's unit for this server, and the user that it runs as."""
    from fedlora_server.fleet.system import write_system

    for line in write_system(_settings(folder), units_dir, users_dir):
        click.echo(line)


def _rotate_identity(settings: FleetSettings) -> None:
    """A new pair; the first one, where the fleet is of a version that signed nothing."""
    from fedlora_server.fleet.identity import make_identity, public_identity, rotate_identity, signs

    if signs(settings.folder):
        new = rotate_identity(settings.folder, datetime.now(UTC))
        click.echo(
            f"{settings.folder}: key {new.keyid:.16} signs, and the one before says so; restart fedlora server run"
        )
        return
    from fedlora.identity.keys import PublicKey

    make_identity(settings.folder)
    keyid = PublicKey.from_pem(public_identity(settings.folder)).keyid
    click.echo(
        f"{settings.folder}: key {keyid:.16} signs what is committed; devices that are enrolled from now on sign, too"
    )


def _named(run: Mapping[str, Scalar]) -> str:
    """How a device names the base of these runs: the one that ships, or a place of its own."""
    return EMBEDDED if run.get("base", EMBEDDED) == EMBEDDED else "BASE"


def _settings(folder: Path) -> FleetSettings:
    from fedlora_server.fleet.settings import read_settings

    return read_settings(folder)


def _tell(line: str) -> None:
    click.echo(printable(line))
    sys.stdout.flush()
