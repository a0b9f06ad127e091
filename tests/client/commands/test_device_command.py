"""`fedlora device`: joining a fleet, the key, the check, the status, withdrawals; and what is wrong with a device.toml."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fedlora.base.pack import BasePack
from fedlora.errors import BundleError, ConfigError, FedloraError
from fedlora.fleet.bundle import Bundle, write_bundle
from fedlora.fleet.flower_process import flower_environment
from fedlora.identity.keys import SigningKey
from fedlora_client.commands.device import device as command
from fedlora_client.records.withdrawn import read_withdrawn
from fedlora_client.service.config import read_device
from fedlora_client.service.joining import join, make_key
from fedlora_client.service.report import report
from fedlora_client.service.signing import Signing
from fedlora_client.service.state import StateFolder
from fedlora_client.supervision.supernode import flower_home, supernode_command
from flwr.common.config import parse_config_args
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from tests.client.service.devices import make_device
from tests.tiny.bundles import certificate, device_key, trusted_key


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def output_of(*arguments: object) -> str:
    result = ran(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def bundle_for(base: BasePack, **values: Any) -> Bundle:
    private, public = device_key()
    content: dict[str, Any] = {
        "name": "kitchen", "superlink": "fleet.example.org:9092", "ca_certificate": certificate(), "public_key": public,
        "private_key": private, "base_fingerprint": base.fingerprint, "trusted_entities": {"fpk_1": trusted_key()},
        "issued": "2026-01-01T00:00:00Z", "expires": "2036-01-01T00:00:00Z",
    }  # fmt: skip
    return Bundle(**(content | values))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "notes.txt").write_text("a line of notes\n" * 50)
    return tmp_path / "my data"


def test_a_bundle_makes_a_device_that_flower_would_start(tmp_path: Path, base: BasePack, data: Path) -> None:
    bundle, folder = bundle_for(base), tmp_path / "device"
    write_bundle(bundle, tmp_path / "kitchen.json")
    options = ("--dir", folder, "--base", base.directory, "--data", data)
    told = output_of("join", tmp_path / "kitchen.json", *options).splitlines()
    assert told[0] == f"{folder / 'device.toml'}: kitchen, a device of fleet.example.org:9092"
    assert told[1] == f"next: fedlora device check --dir {folder}, and fedlora device run --dir {folder}"
    config = read_device(folder / "device.toml")
    assert (config.device.name, config.data.source, config.policy.bases) == ("kitchen", str(data), (base.fingerprint,))
    assert stat.S_IMODE((folder / "device.key").stat().st_mode) == 0o600
    assert (folder / "device.key").read_text() == bundle.private_key
    arguments = _parse_args_run_supernode().parse_args(supernode_command(config)[1:])
    assert (arguments.superlink, arguments.insecure) == ("fleet.example.org:9092", False)
    assert arguments.root_certificates == str(folder / "fleet.crt")
    assert arguments.auth_supernode_private_key == str(folder / "device.key")
    assert json.loads(Path(arguments.trusted_entities).read_text()) == dict(bundle.trusted_entities)
    node = parse_config_args([arguments.node_config])
    assert node == {"socket": str(folder / "run" / "device.sock"), "name": "kitchen"}
    assert flower_environment(flower_home(config))["FLWR_HOME"] == str(folder / "state" / "flwr")
    with pytest.raises(ConfigError, match="exists already"):
        join(tmp_path / "kitchen.json", folder, base=str(base.directory), data=data)


def test_a_device_may_make_its_own_key(tmp_path: Path, base: BasePack, data: Path) -> None:
    folder = tmp_path / "device"
    line, also = output_of("key", "--dir", folder).splitlines()
    assert output_of("key", "--dir", folder).splitlines() == [line, also]
    assert also.startswith(f"{folder / 'identity.key.pub'}: ")
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert stat.S_IMODE((folder / "device.key").stat().st_mode) == 0o600
    own, others = bundle_for(base, public_key=line, private_key=None), bundle_for(base, private_key=None)
    write_bundle(others, tmp_path / "others.json")
    write_bundle(own, tmp_path / "own.json")
    with pytest.raises(BundleError, match="is not the one that was enrolled"):
        join(tmp_path / "others.json", folder, base=str(base.directory), data=data)
    assert not (folder / "device.toml").exists()
    path = join(tmp_path / "own.json", folder, base=str(base.directory), data=data, name="pantry")
    assert read_device(path).device.name == "pantry"
    (folder / "device.key").unlink()
    with pytest.raises(ConfigError, match="only half of the pair"):
        make_key(folder)


def signing_bundle(base: BasePack, **changed: object) -> Bundle:
    own, server = SigningKey.generate(), SigningKey.generate()
    values: dict[str, Any] = {
        "identity": own.public.to_pem(), "identity_key": own.to_pem().decode(), "server_identity": server.public.to_pem(),
    }  # fmt: skip
    return bundle_for(base, **values | changed)


def test_a_bundle_of_a_fleet_that_signs_brings_both_keys(tmp_path: Path, base: BasePack, data: Path) -> None:
    made = signing_bundle(base)
    write_bundle(made, tmp_path / "kitchen.json")
    config = read_device(join(tmp_path / "kitchen.json", tmp_path / "device", base=str(base.directory), data=data))
    signing = Signing.of(config)
    assert signing is not None
    assert signing.key.public.to_pem() == made.identity == (tmp_path / "device" / "identity.key.pub").read_text()
    assert signing.server.to_pem() == made.server_identity
    assert stat.S_IMODE((tmp_path / "device" / "identity.key").stat().st_mode) == 0o600
    assert (made.identity_key or "?") not in repr(made)


def test_a_bundle_whose_pair_is_not_the_one_that_is_known_makes_no_device(
    tmp_path: Path, base: BasePack, data: Path
) -> None:
    other = SigningKey.generate()
    broken: dict[str, dict[str, Any]] = {
        "two": {"identity": other.public.to_pem()},
        "none": {"identity_key": None},
        "private": {"identity": other.to_pem().decode()},
    }
    for name, change in broken.items():
        with pytest.raises(FedloraError, match="identity"):
            write_bundle(signing_bundle(base, **change), tmp_path / f"{name}.json")
            join(tmp_path / f"{name}.json", tmp_path / name, base=str(base.directory), data=data)
        assert not (tmp_path / name / "device.toml").exists()
    with pytest.raises(BundleError, match="expected both halves"):
        signing_bundle(base, identity=None)


def test_a_device_keeps_the_pair_that_it_made_itself(tmp_path: Path, base: BasePack, data: Path) -> None:
    folder = tmp_path / "device"
    line = output_of("key", "--dir", folder).splitlines()[0]
    own = (folder / "identity.key.pub").read_text()
    changes: dict[str, Any] = {"public_key": line, "private_key": None, "identity_key": None}
    write_bundle(signing_bundle(base, **changes, identity=own), tmp_path / "own.json")
    write_bundle(signing_bundle(base, **changes), tmp_path / "others.json")
    with pytest.raises(BundleError, match="is not the one that was enrolled"):
        join(tmp_path / "others.json", folder, base=str(base.directory), data=data)
    config = read_device(join(tmp_path / "own.json", folder, base=str(base.directory), data=data))
    assert (signing := Signing.of(config)) is not None
    assert signing.key.public.to_pem() == own


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        ({"expires": "2026-02-01T00:00:00Z"}, {}, "expired on 2026-02-01"),
        ({"base_fingerprint": "0" * 64}, {}, "the fleet's base is 0000000000000000"),
        ({}, {"data": Path("/nowhere/at-all")}, "no such file or folder"),
        ({}, {"name": "no name!"}, "is no name of a device"),
        ({}, {"base": "/nowhere/at-all"}, "/nowhere/at-all"),
    ],
)
def test_what_cannot_join_writes_nothing(
    tmp_path: Path, base: BasePack, data: Path, values: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    write_bundle(bundle_for(base, **values), tmp_path / "kitchen.json")
    given: dict[str, Any] = {"base": str(base.directory), "data": data} | options
    with pytest.raises(FedloraError, match=told):
        join(tmp_path / "kitchen.json", tmp_path / "device", now=datetime(2026, 11, 30, tzinfo=UTC), **given)
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "device.name is missing"),
        ("[device]\nname = 'a b'\n", "is no name of a device"),
        ("[device]\nname = 'a'\nbasis = 'nano'\n", r"unknown key device\.basis; did you mean device\.base\?"),
        (
            "[device]\nname = 'a'\n[polcy]\nmax_rank = 1\n",
            r"unknown key polcy\.max_rank; did you mean policy\.max_rank\?",
        ),
        ("[device]\nname = 'a'\n[policy]\nmax_rank = 'eight'\n", r"policy\.max_rank: 'eight'; expected"),
        ("[device]\nname = 'a'\n[policy]\nmains_only = 1\n", r"policy\.mains_only: 1; expected"),
        ("[device]\nname = 'a'\n[policy]\nquiet_hours = '22:00-07:00'\n", r"policy\.quiet_hours: .* list of texts"),
        ("[device]\nname = 'a'\n[policy]\nquiet_hours = ['late']\n", "expected HH:MM-HH:MM"),
        ("[device]\nname = 'a'\n[data.fields]\nquestion = 'q'\n", r"unknown key data\.fields\.question"),
        ("[device]\nname = 'a'\n[server]\nsuperlink = 'here'\n", "expected HOST:PORT"),
        ("[device]\nname = 'a'\n[server]\ninsecure = true\nkey = 'k'\n", "for TLS only"),
        ("[device]\nname = 'a'\n[serve]\nmodel = 'm'\nurl = 'http://x'\n", "give only one"),
        ("[device]\nname = 'a'\n[serve]\nurl = 'ftp://x'\n", "expected http"),
        ("device = 3\n", "unknown key device"),
        ("[device\n", "not TOML"),
    ],
)
def test_a_device_toml_that_is_wrong_is_refused_by_its_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "device.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        read_device(path)
    assert str(path) in str(refused.value)


def test_paths_count_from_the_file_and_have_places_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: BasePack
) -> None:
    monkeypatch.setenv("FEDLORA_HOME", str(tmp_path))
    config = make_device(tmp_path / "device", base)
    assert config.state == tmp_path / "device" / "state"
    assert "kitchen: the service is not running" in output_of("status")
    told = json.loads(output_of("status", "--json"))
    assert (told["name"], told["running"], told["rounds"]) == ("kitchen", False, [])
    assert output_of("logs") == ""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", r"server\.superlink is missing"),
        ("[server]\nsuperlink = 'here:1'\n", r"server\.key is missing"),
        ("[server]\nsuperlink = 'here:1'\nkey = 'none.key'\n", r"server\.key: there is no"),
        ("[serve]\nkeep = 0\n", "at least 1"),
    ],
)
def test_a_link_that_cannot_be_is_told_before_anything_runs(
    tmp_path: Path, base: BasePack, more: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        supernode_command(make_device(tmp_path, base, more))


def test_check_tells_what_would_happen(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base, "[policy]\nmax_rank = 4\n[server]\nsuperlink = '127.0.0.1:1'\n")
    told = output_of("check", "--config", config.path, "--length", 16, "--rank", 2)
    for part in (
        "notes.jsonl: 36 examples",
        "windows of 16 tokens",
        "MB for a step",
        "up to 4",
        "127.0.0.1:1, over TLS, cannot be reached: nobody listens",
    ):
        assert part in told
    strict = make_device(tmp_path, base, "[policy]\nmin_examples = 100\n")
    result = ran("check", "--config", strict.path, "--length", 16)
    assert isinstance(result.exception, FedloraError)
    assert "policy.min_examples wants 100" in str(result.exception)


def test_records_are_withdrawn_by_their_line_or_by_what_they_contain(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    config.state.mkdir()
    told = output_of("withdraw", "--config", config.path, "--file", "notes.jsonl", "--record", 3)
    assert "notes.jsonl: line 3: line 2: the quick" in told
    told = output_of("withdraw", "--config", config.path, "--file", "notes.jsonl", "--contains", "line 3")
    assert told.endswith("withdrawn: 11\n")  # 3 and 30 to 39
    assert "withdrawn: 0" in output_of(
        "withdraw", "--config", config.path, "--file", "notes.jsonl", "--contains", "line 3:"
    )
    assert len(read_withdrawn(config.withdrawn).digests) == 12
    assert "quick" not in config.withdrawn.read_text()
    assert "12 records withdrawn" in output_of("withdraw", "--config", config.path, "--list")
    for wrong, said in (
        (("--file", "notes.jsonl", "--record", 99), "record 99 is not there"),
        (("--file", "notes.jsonl", "--contains", "zebra"), "no record with 'zebra'"),
        (("--file", "../device.toml"), "is not below"),
        ((), "is a folder; give --file"),
    ):
        assert said in str(ran("withdraw", "--config", config.path, *wrong).exception)


def test_rows_of_a_database_and_whole_texts_are_withdrawn(tmp_path: Path, base: BasePack, data: Path) -> None:
    database = tmp_path / "notes.db"
    with closing(sqlite3.connect(database)) as made, made:
        made.execute("CREATE TABLE notes (text TEXT)")
        made.executemany("INSERT INTO notes VALUES (?)", [(f"note {n}",) for n in range(5)])
    config = make_device(tmp_path, base, source="notes.db", query="SELECT text FROM notes")
    assert "row 2: note 1" in output_of("withdraw", "--config", config.path, "--record", 2)
    assert "row by row" in str(ran("withdraw", "--config", config.path).exception)
    text = make_device(tmp_path / "two", base, source=str(data))
    assert "the whole file" in output_of("withdraw", "--config", text.path, "--file", "notes.txt")
    assert "withdrawn whole" in str(
        ran("withdraw", "--config", text.path, "--file", "notes.txt", "--record", 1).exception
    )


def test_a_state_folder_that_is_damaged_is_still_reported(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    config.state.mkdir()
    for name in ("status.json", "day.json", "adapter.json", "rounds.jsonl", "processes.json", "published.json"):
        (config.state / name).write_text('{"half": ')
    assert report(config, 5)["rounds"] == []
    assert "not running" in output_of("status", "--config", config.path)


def test_a_supervisor_that_was_killed_has_no_processes_any_more(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    state = StateFolder(config.state)
    state.make()
    state.write("processes", {"pids": {"trainer": None, "link": 4711}})
    state.write("link", {"said": "connected", "at": "now"})
    state.add_round({"at": "now", "kind": "train", "refusal": "policy-hours", "said": "it is night"})
    with state.held("link-supervisor"):
        told = output_of("status", "--dir", tmp_path)
    assert "processes: link 4711\n" in told
    assert "link: connected, since now\n" in told
    assert "  now train: policy-hours: it is night\n" in told
    told = output_of("status", "--dir", tmp_path)
    assert "4711" not in told
    assert "connected" not in told


def test_what_a_server_calls_its_run_steers_no_terminal(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    (config.state / "log").mkdir(parents=True)
    (config.state / "log" / "link.log").write_text("\x1b[2Jgone\n")
    entry = {"at": "now", "kind": "train", "run": "\x1b[2Jspring", "round": 1}
    (config.state / "rounds.jsonl").write_text(json.dumps(entry) + "\n")
    for name, told in (("status", "spring"), ("logs", "gone")):
        shown = CliRunner().invoke(command, [name, "--dir", str(tmp_path)], color=True).output
        assert told in shown
        assert "\x1b" not in shown


def test_a_device_is_paused_and_takes_part_again(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    assert output_of("pause", "--dir", tmp_path) == "kitchen takes no part\n"
    assert "paused" in output_of("status", "--config", config.path)
    assert "policy-paused" in output_of("check", "--dir", tmp_path, "--length", 16)
    assert output_of("resume", "--dir", tmp_path) == "kitchen takes part\n"
    assert "paused" not in output_of("status", "--dir", tmp_path)


def test_serving_that_is_asked_for_must_be_configured(tmp_path: Path, base: BasePack) -> None:
    config = make_device(tmp_path, base)
    assert "set serve.model" in str(ran("run", "--config", config.path, "--serve").exception)
    assert replace(config.serve, on_commit=("true",)).is_used
