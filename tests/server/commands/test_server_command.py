"""`fedlora server` without a SuperLink: what it writes, refuses and tells."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fedlora import errors
from fedlora.base.pack import open_pack
from fedlora.errors import FedloraError
from fedlora.fleet.bundle import read_bundle
from fedlora.identity.keys import PublicKey
from fedlora_server.commands.server import server
from fedlora_server.fleet import authority
from fedlora_server.fleet.control import control_of
from fedlora_server.fleet.current_run import CurrentRun, write_current
from fedlora_server.fleet.devices import read_devices
from fedlora_server.fleet.settings import read_settings
from fedlora_server.run.round_record import RoundRecord

from tests.tiny.bundles import device_key, trusted_key


def run(*arguments: object) -> Result:
    return CliRunner().invoke(server, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, FedloraError), (result.output, result.exception)
    return str(result.exception)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run("init", "fleet", "--host", "fleet.example.org", "--host", "10.0.0.7", "--port", 18443).exit_code == 0
    return tmp_path / "fleet"


def test_a_fleet_has_its_secrets_for_itself(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    private = ["tls/ca.key", "tls/server.key", "superexec.secret", "app/signing_key"]
    assert {name: (folder / name).stat().st_mode & 0o777 for name in private} == dict.fromkeys(private, 0o600)
    assert len((folder / "superexec.secret").read_bytes()) >= 32


def test_superlink_of_a_fleet_that_others_reach_stands_behind_nginx(folder: Path) -> None:
    settings = read_settings(folder)
    assert (settings.address, settings.control) == ("fleet.example.org:18443", "127.0.0.1:18444")
    assert not settings.is_open


def test_superlink_of_a_fleet_on_one_machine_is_reached_at_once(tmp_path: Path) -> None:
    assert run("init", tmp_path / "local", "--host", "localhost").exit_code == 0
    settings = read_settings(tmp_path / "local")
    assert (settings.address, settings.control) == ("localhost:8443", "127.0.0.1:8443")


def test_nothing_is_overwritten(folder: Path) -> None:
    before = (folder / "tls" / "ca.key").read_bytes()
    assert "exists already" in refusal("init", folder, "--host", "other")
    assert (folder / "tls" / "ca.key").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "a b"], "host: 'a b'"),
        (["--host", "a", "--set", "server.round=2"], "server.round"),
        (["--host", "a", "--set", "output=x"], "run.output"),
    ],
)
def test_a_fleet_that_is_refused_leaves_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in refusal("init", tmp_path / "fleet", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_enrolled_with_a_bundle_that_it_can_use(folder: Path) -> None:
    assert "kitchen.json" in run("enrol", "kitchen").output
    bundle = read_bundle(Path("kitchen.json"))
    (entry,) = read_devices(folder / "devices.json").current
    assert (bundle.name, bundle.superlink) == ("kitchen", "fleet.example.org:18443")
    assert bundle.public_key == entry.public_key
    assert bundle.private_key is not None
    assert bundle.ca_certificate == (folder / "tls" / "ca.crt").read_text()
    assert bundle.base_fingerprint == open_pack("nano").fingerprint
    assert list(bundle.trusted_entities.values()) == [(folder / "app" / "signing_key.pub").read_text().strip()]
    assert not bundle.is_expired(datetime.now(UTC) + timedelta(days=3600))


def test_a_device_keeps_a_key_that_it_made_itself(folder: Path, tmp_path: Path) -> None:
    _, public = device_key()
    (tmp_path / "key.pub").write_text(public + " me@kitchen\n")
    assert run("enrol", "kitchen", "--public-key", "key.pub", "-o", "b.json").exit_code == 0
    bundle = read_bundle(tmp_path / "b.json")
    assert (bundle.public_key, bundle.private_key) == (public, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("x", "not an SSH public key"),
        (trusted_key(), "ssh-ed25519"),
        (device_key()[0], "public_key"),
    ],
    # Keys are made anew in each process, and processes must agree on the names of cases.
    ids=["none", "no key", "another kind", "private"],
)
def test_a_key_of_another_kind_enrols_nobody(folder: Path, tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "key.pub").write_text(content)
    assert said in refusal("enrol", "kitchen", "--public-key", "key.pub")
    assert not (folder / "devices.json").exists()
    assert not (tmp_path / "kitchen.json").exists()


def test_whoever_cannot_be_enrolled_gets_no_bundle(folder: Path, tmp_path: Path) -> None:
    run("enrol", "kitchen")
    assert "fedlora server revoke kitchen" in refusal("enrol", "kitchen", "-o", "again.json")
    assert "exists already" in refusal("enrol", "cellar", "-o", "kitchen.json")
    assert "name: '../x'" in refusal("enrol", "../x", "-o", "x.json")
    assert len(read_devices(folder / "devices.json").entries) == 1
    assert not (tmp_path / "again.json").exists()
    assert not (tmp_path / "x.json").exists()


def test_a_revoked_device_is_no_longer_of_the_fleet(folder: Path) -> None:
    run("enrol", "kitchen")
    assert "will be told when it starts" in run("revoke", "kitchen").output
    assert read_devices(folder / "devices.json").current == []
    assert "no device of the fleet" in refusal("revoke", "kitchen")


def test_a_certificate_is_renewed_with_the_names_of_the_settings(folder: Path) -> None:
    text = (folder / "server.toml").read_text()
    (folder / "server.toml").write_text(text.replace('names = ["10.0.0.7"]', 'names = ["10.0.0.8"]'))
    assert "valid until" in run("rotate", folder).output
    from cryptography import x509

    made = authority.read_certificate(folder / "tls" / "server.crt")
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "10.0.0.8" in [str(address) for address in names.get_values_for_type(x509.IPAddress)]


def test_the_status_tells_of_the_run_and_of_who_is_missing(folder: Path) -> None:
    run("enrol", "kitchen")
    run("enrol", "cellar")
    run("revoke", "cellar")
    output = folder / "runs" / "fleet-1"
    (output / "rounds" / "0001").mkdir(parents=True)
    first = RoundRecord(0, loss={"kitchen": 3.0})
    second = RoundRecord(
        1,
        devices=2,
        replies=1,
        bytes_up=10,
        bytes_down=20,
        train_loss={"kitchen": 2.5},
        loss={"kitchen": 2.0, "x": 3.0},
    )
    second.excluded["device-error"] = 1
    lines = "".join(json.dumps(record.line()) + "\n" for record in (first, second))
    (output / "metrics.jsonl").write_text(lines)
    write_current(folder / "run.json", CurrentRun(output=str(output), config={"server.rounds": 3}))
    told = json.loads(run("status", folder, "--json").output)
    assert (told["round"], told["rounds"], told["run_state"], told["is_up"]) == (1, 3, "running", False)
    assert (told["loss"], told["bytes_up"], told["bytes_down"]) == (2.5, 10, 20)
    assert (told["refusals"], told["revoked"]) == ({"device-error": 1}, ["cellar"])
    (told_of,) = told["devices"]
    signs_with = PublicKey.from_pem(read_bundle(folder.parent / "kitchen.json").identity or "").keyid
    assert told_of == {"name": "kitchen", "node": None, "state": "unknown", "last_round": 1, "key": signs_with}
    shown = run("status", folder).output
    assert "0 of 1 are connected" in shown
    assert "1 device-error" in shown
    assert "kitchen" in shown


def test_the_status_warns_of_a_certificate_30_days_before(folder: Path) -> None:
    assert json.loads(run("status", folder, "--json").output)["warnings"] == []
    soon = datetime.now(UTC) - timedelta(days=authority.SERVER_DAYS - 29)
    authority.make_server_certificate(folder / "tls", ("a",), soon)
    (warning,) = json.loads(run("status", folder, "--json").output)["warnings"]
    assert "server.crt expires in 28 days" in warning
    assert "fedlora server rotate" in warning


def test_a_server_of_no_fleet_a_wrong_key_or_a_missing_base_starts_nothing(folder: Path, tmp_path: Path) -> None:
    assert "there is no server.toml" in refusal("run", tmp_path)
    assert "server.round" in refusal("run", folder, "--set", "server.round=1")
    assert "nowhere" in refusal("run", folder, "--set", "base=nowhere")
    authority.make_server_certificate(folder / "tls", ("a",), datetime.now(UTC) - timedelta(days=400))
    assert "expired" in refusal("run", folder)
    assert not (folder / "superlink.db").exists()


def test_what_does_not_answer_is_told_with_the_way_out(folder: Path) -> None:
    with control_of(read_settings(folder)) as control, pytest.raises(errors.RunError, match="fedlora server run"):
        control.nodes()
