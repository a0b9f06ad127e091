"""docs/deploy.md says what Flower takes: its options, keys and certificates, and a unit that systemd reads."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.flower_config import parse_superlink_connection
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from typer.main import get_command

PROJECT = Path(__file__).resolve().parents[1]
TEXT = (PROJECT / "docs" / "deploy.md").read_text(encoding="utf-8")
(MAKE_CERTIFICATES,), (CONFIG,), (UNIT,) = (
    re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) for language in ("sh", "toml", "ini")
)


def commands(name: str) -> list[list[str]]:
    """The arguments of each command of this name in the indented blocks and in the unit."""
    lines = re.sub(r"\\\n\s*", "", TEXT).splitlines()
    starts = (line.strip().removeprefix("ExecStart=/opt/fedlora/bin/") for line in lines if not line.startswith("- "))
    return [shlex.split(line)[1:] for line in starts if re.match(rf"{name}\s+[\w-]", line)]


@pytest.mark.parametrize(
    ("name", "parser", "count"),
    [
        ("flower-superlink", _parse_args_run_superlink, 2),
        ("flower-supernode", _parse_args_run_supernode, 2),
    ],
)
def test_flower_takes_every_option_of_a_command(
    name: str, parser: Callable[[], argparse.ArgumentParser], count: int
) -> None:
    told = commands(name)
    assert len(told) == count
    for arguments in told:
        assert parser().parse_args(arguments)


def test_flwr_has_every_command() -> None:
    told = commands("flwr")
    assert {tuple(arguments[:1]) for arguments in told} == {("run",), ("list",), ("supernode",)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typer's, of what it will no longer take
        from flwr.cli.app import app

        flwr = get_command(app)
    for arguments in told:
        command = flwr
        while arguments and arguments[0] in getattr(command, "commands", {}):
            command = command.commands[arguments.pop(0)]  # type: ignore[attr-defined]
        names = {name for parameter in command.params for name in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= names


@pytest.mark.parametrize("option", ["--trusted-entities", "--insecure", "--isolation"])
def test_an_option_that_the_text_names_is_there(option: str) -> None:
    assert option in _parse_args_run_supernode().format_help()


def test_the_operators_connection_is_one_that_flwr_reads() -> None:
    table = tomllib.loads(CONFIG)["superlink"]
    connection = parse_superlink_connection(table[table["default"]], table["default"])
    assert connection.address == "127.0.0.1:8000"
    assert connection.root_certificates
    assert not connection.insecure


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the commands make."""
    for tool in ("openssl", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not there: it makes the certificates and keys")
    folder = tmp_path_factory.mktemp("certificates")
    done = subprocess.run(
        ["sh", "-ec", MAKE_CERTIFICATES], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_certificate_is_good_for_its_names_and_for_no_other(made: Path, name: str) -> None:
    assert shaken_hands(made, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(made, "example.org")


def shaken_hands(made: Path, name: str) -> bool:
    """Whether a client that knows the authority alone takes the server for `name`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made / "server.crt", made / "server.key")
    client = ssl.create_default_context(cafile=str(made / "ca.crt"))
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as channel:
                channel.recv(1)
        except OSError:
            theirs.close()  # the client told it why

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as channel:
            channel.send(b"1")
    finally:
        ours.close()
        thread.join()
    return True


def test_the_devices_keys_are_of_the_form_that_flower_reads(made: Path) -> None:
    private = load_ssh_private_key((made / "device-a").read_bytes(), None)
    public = load_ssh_public_key((made / "device-a.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.public_key() == public


def test_nobody_else_may_read_what_is_secret(made: Path) -> None:
    assert [name for name in ("ca.key", "server.key", "device-a") if (made / name).stat().st_mode & 0o077] == []


def test_the_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not there")
    unit = tmp_path / "flower-superlink.service"
    unit.write_text(UNIT.replace("/opt/fedlora/bin", str(Path(sys.executable).parent)), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []
    assert done.returncode == 0, done.stderr
