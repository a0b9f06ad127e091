"""docs/deployment.md says what the commands take: ours, Flower's, and no more than ten to an adapter."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from fedlora_client.commands.device import device
from fedlora_export.commands.export import export
from fedlora_serve.commands.generate import generate
from fedlora_server.commands.server import server
from fedlora_server.fleet.authority import CA_DAYS, SERVER_DAYS, WARNING_DAYS
from fedlora_server.fleet.children import MOST_DEATHS, SETTLED_S
from fedlora_server.fleet.commands import environment, superexec, superlink
from fedlora_server.fleet.nginx import MAX_BODY_MB
from fedlora_server.fleet.run_watch import FIRST_PAUSE_S, MOST_FAILURES
from fedlora_server.fleet.settings import FleetSettings
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", TEXT).splitlines()
(FIRST,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS: dict[str, click.Command] = {"server": server, "device": device, "export": export, "generate": generate}


def told(name: str) -> list[list[str]]:
    """The arguments of each command of this name in the blocks."""
    return [shlex.split(line)[1:] for line in LINES if re.match(rf"(    )?{name}\s+\S", line) and "`" not in line]


def test_it_takes_at_most_ten_commands_from_nothing_to_text() -> None:
    commands = FIRST.strip().splitlines()
    assert 0 < len(commands) <= 10
    assert commands[0].startswith("fedlora server init")
    assert commands[-1].startswith("fedlora generate")


def test_every_command_of_ours_takes_its_options() -> None:
    commands = told("fedlora")
    assert len(commands) >= 17
    for arguments in commands:
        name, *rest = (part for part in arguments if part != "&")
        command = COMMANDS[name]
        if isinstance(command, click.Group):
            sub = command.get_command(click.Context(command), rest[0])
            assert sub is not None, arguments
            command, rest = sub, rest[1:]
        command.make_context(name, list(rest), resilient_parsing=False)


def flat(command: list[str]) -> list[str]:
    """A command with its files as the page names them."""
    return [part.replace("/srv/fleet", "fleet") for part in command[1:]]


def test_flowers_commands_are_those_that_the_server_starts() -> None:
    settings = FleetSettings(folder=Path("/srv/fleet"), host="localhost", run={})
    assert told("flower-superlink") == [flat(superlink(settings))]
    assert told("flower-superexec") == [flat(superexec(settings))]
    own = environment(settings).items() - {("PATH", environment(settings)["PATH"])}
    for key, value in own:
        if key.startswith(("FLWR_", "FEDLORA_")) and value.startswith(("1", "0", "/srv/fleet")):
            assert f"`{key}={value.replace('/srv/fleet', 'fleet')}`" in TEXT


@pytest.mark.parametrize(
    ("name", "parser"),
    [("flower-superlink", _parse_args_run_superlink), ("flower-supernode", _parse_args_run_supernode)],
)
def test_flower_takes_every_option(name: str, parser: Callable[[], argparse.ArgumentParser]) -> None:
    for arguments in told(name):
        assert parser().parse_args(arguments)


def test_its_numbers_are_those_of_the_code() -> None:
    assert (CA_DAYS // 365, SERVER_DAYS, WARNING_DAYS, MAX_BODY_MB) == (10, 365, 30, 8)
    assert (MOST_DEATHS + 1, SETTLED_S, MOST_FAILURES, FIRST_PAUSE_S) == (7, 60.0, 3, 5.0)
    for said in ("10 years", "1 year", "30 days", "8 MB", "7 times", "a minute", "3 failures", "5 s and 10 s"):
        assert said in TEXT
