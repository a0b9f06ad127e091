"""`fedlora device`: a device that belongs to a fleet, from its key to its status."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from fedlora.counted import counted
from fedlora.errors import ConfigError, printable

from fedlora_client.service.config import FILE, DeviceConfig, home, read_device

if TYPE_CHECKING:
    from fedlora_client.supervision.run import Part


def _config_option(command: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "--config", "--dir", "path", type=click.Path(path_type=Path), metavar="PATH",
        help=f"The device's {FILE}, or its folder.  [default: $FEDLORA_HOME/device, or ~/.fedlora/device]",
    )(command)  # fmt: skip


def _read(path: Path | None) -> DeviceConfig:
    path = path or home()
    path = path / FILE if path.is_dir() or path.suffix != ".toml" else path
    if not path.exists():
        where = "" if path.parent == home() else f" --dir {path.parent}"
        raise ConfigError(
            f"{path}: there is no device; join a fleet: fedlora device join BUNDLE --base BASE --data DATA{where}, or name "
            "another --dir"
        )
    return read_device(path)


@click.group()
def device() -> None:
    """Run a device of a fleet: it trains on its own data when its server asks and its own policy allows it."""


@device.command()
@_config_option
@click.option("--only", type=click.Choice(["trainer", "link", "serve"]), help="One of its processes alone.")
@click.option("--serve", is_flag=True, help="Put committed adapters into use, as [serve] says.")
@click.option(
    "--state", type=click.Path(path_type=Path), metavar="DIR",
    help="Where --only link or serve keeps its files, where another user runs it.  [default: device.state]",
)  # fmt: skip
def run(path: Path | None, only: Part | None, serve: bool, state: Path | None) -> None:
    """Run the device until it is stopped: its trainer, its link to the server, and what [serve] says.

    The trainer owns base, data and policy, and needs no network. The link is Flower's SuperNode, and sees no data. What
    ends is started again.
    """
    config = _read(path)
    if serve and not config.serve.is_used:
        raise ConfigError(f"{config.path}: --serve: set serve.model, serve.url or serve.on_commit there")
    if state and only in (None, "trainer"):
        raise ConfigError(
            "--state is for --only link and --only serve; the trainer's folder is device.state in device.toml"
        )
    if only == "trainer":
        from fedlora_client.supervision.trainer import run_trainer

        run_trainer(config)
        return
    from fedlora_client.supervision.run import run_device

    parts: tuple[Part, ...] = ("trainer", "link", "serve") if config.serve.is_used else ("trainer", "link")
    run_device(config.with_state(state) if state else config, (only,) if only else parts)


@device.command()
@_config_option
@click.option("--length", type=click.IntRange(min=2), default=128, help="Tokens of a window.  [default: 128]")
@click.option("--rank", type=click.IntRange(min=1), default=16, help="Of an adapter.  [default: 16]")
def check(path: Path | None, length: int, rank: int) -> None:
    """Tell what would happen: the data that are trained on, the base, the memory, the policy in words."""
    config = _read(path)
    from fedlora_client.service.check import checked

    for line in checked(config, length, rank):
        click.echo(line)


@device.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="The device's folder.  [default: $FEDLORA_HOME/device]"
)
@click.option(
    "--base", required=True, help="The base pack that the fleet trains; nano: the one that ships with fedlora."
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A file, a folder, or an SQLite database.")
@click.option("--query", default="", metavar="SELECT", help="What is learned of a database.")
@click.option("--name", default="", help="Another name than the bundle's.")
@click.option("--system", "is_system", is_flag=True, help="As a service of the system, for `fedlora device units`.")
def join(bundle: Path, folder: Path | None, base: str, data: Path, query: str, name: str, is_system: bool) -> None:
    """Make this a device of the fleet that gave BUNDLE: write device.toml, its key and the fleet's certificate."""
    from fedlora_client.service.joining import join as join_fleet
    from fedlora_client.service.system import FOLDER as SYSTEM_FOLDER

    folder = folder or (SYSTEM_FOLDER if is_system else home())
    joined = read_device(join_fleet(bundle, folder, base=base, data=data, query=query, name=name, is_system=is_system))
    click.echo(f"{folder / FILE}: {joined.device.name}, a device of {joined.server.superlink}")
    where = "" if folder == home() else f" --dir {folder}"
    click.echo("next: fedlora device " + ("units" if is_system else f"check{where}, and fedlora device run{where}"))


@device.command()
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help=f"The device's {FILE}.  [default: in /etc/fedlora]"
)
@click.option("--dir", "folder", type=click.Path(path_type=Path), default="/etc/systemd/system", show_default=True)
@click.option("--users-dir", type=click.Path(path_type=Path), default="/etc/sysusers.d", show_default=True)
def units(path: Path | None, folder: Path, users_dir: Path) -> None:
    """Write systemd's units: a trainer without network, and a link without data, each with a user of its own."""
    from fedlora_client.service.system import FOLDER as SYSTEM_FOLDER
    from fedlora_client.service.system import write_system

    for line in write_system(read_device(path or SYSTEM_FOLDER / FILE), folder, users_dir):
        click.echo(line)


@device.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="The device's folder.  [default: $FEDLORA_HOME/device]"
)
def key(folder: Path | None) -> None:
    """Make the device's own keys, and print the public one, for `fedlora server enrol --public-key`.

    The pair by which it signs is made too; its public half is for `--identity`.
    """
    from fedlora_client.service.joining import make_identity, make_key

    click.echo(make_key(folder or home()))
    click.echo(f"{make_identity(folder or home())}: the public half of the pair that signs, for --identity", err=True)


@device.command()
@_config_option
@click.option("--file", "file", metavar="FILE", help="Of the device's data.")
@click.option("--record", type=click.IntRange(min=1), metavar="N", help="The record of line, row or number N.")
@click.option("--contains", metavar="TEXT", help="Every record with this text.")
@click.option("--list", "lists", is_flag=True, help="What is withdrawn.")
def withdraw(path: Path | None, file: str | None, record: int | None, contains: str | None, lists: bool) -> None:
    """Take back records, or a whole file: from the next round on the device neither trains nor measures on them.

    What they gave to rounds before is part of the adapters that were committed, and stays there.
    """
    config = _read(path)
    from fedlora_client.records.withdrawn import read_withdrawn
    from fedlora_client.records.withdrawn import withdraw as keep
    from fedlora_client.service.withdrawing import find

    if lists:
        withdrawn = read_withdrawn(config.withdrawn)
        click.echo(f"{counted(len(withdrawn.digests), 'record')} withdrawn")
        for name in sorted(withdrawn.files):
            click.echo(f"{name}: the whole file")
        return
    found = find(config, file, record=record, contains=contains)
    new = keep(config.withdrawn, [one.entry() for one in found])
    for one in found:
        click.echo(one)
    click.echo(f"withdrawn: {new}, {len(found) - new} of them before" if new < len(found) else f"withdrawn: {new}")


@device.command()
@_config_option
def pause(path: Path | None) -> None:
    """Let the device refuse whatever it is asked, until `fedlora device resume`. What it does ends, and is saved."""
    config = _read(path)
    from fedlora_client.service.state import StateFolder

    StateFolder(config.state).make()
    config.paused.touch()
    click.echo(f"{config.device.name} takes no part")


@device.command()
@_config_option
def resume(path: Path | None) -> None:
    """Let the device take part again."""
    config = _read(path)
    config.paused.unlink(missing_ok=True)
    click.echo(f"{config.device.name} takes part")


@device.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="For a program.")
@click.option("-n", "rounds", type=click.IntRange(0, 1000), default=5, help="Answers that are told.  [default: 5]")
def status(path: Path | None, as_json: bool, rounds: int) -> None:
    """Show what the device does and did: base, adapter, rounds, memory, energy, refusals; also when it is not running."""
    config = _read(path)
    from fedlora_client.service.report import lines, report

    told = report(config, rounds)
    if as_json:
        click.echo(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **told}, indent=1))
        return
    for line in lines(told):
        click.echo(printable(line))


@device.command()
@_config_option
@click.option("-n", "count", type=click.IntRange(0, 100_000), default=50, help="Lines.  [default: 50]")
def logs(path: Path | None, count: int) -> None:
    """Print the last lines that the device's processes logged, by their times."""
    config = _read(path)
    from fedlora_client.service.logs import last_lines

    for line in last_lines(config.state / "log", count):
        click.echo(printable(line))
