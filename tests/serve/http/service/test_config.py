"""The configuration of a service: from a file, changed by the command line, refused with what to do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fedlora.errors import ConfigError
from fedlora_serve.http.access.keys import key_digest
from fedlora_serve.http.service.config import ServeConfig, byte_size, shown_size
from fedlora_serve.http.service.config_file import read_config
from fedlora_serve.limits import Limits

KEY, OTHER = "a-key-of-the-web-0123", "another-key-0123456789"


def save_key(path: Path, key: str = KEY) -> None:
    path.write_text(key + "\n")
    path.chmod(0o600)


def read(folder: Path, text: str = "", environment: dict[str, str] | None = None, **options: Any) -> ServeConfig:
    path = folder / "serve.toml"
    path.write_text(text)
    return read_config(path, options, environment or {})


def test_origins_come_from_the_file_or_from_the_command_line(tmp_path: Path) -> None:
    text = 'allow_origin = ["https://chat.example", "http://localhost:3000"]'
    assert read(tmp_path, text).allow_origin == ("https://chat.example", "http://localhost:3000")
    assert read(tmp_path, text, allow_origin=("*",)).allow_origin == ("*",)
    for wrong in ('"*"', "[3]", "true"):
        with pytest.raises(ConfigError, match=r"allow_origin must be a list of origins"):
            read(tmp_path, f"allow_origin = {wrong}")


def test_the_key_of_files_at_rest_counts_from_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, 'at_rest_key = "file:keys/k"').at_rest_key == f"file:{tmp_path / 'keys/k'}"
    assert read(tmp_path, 'at_rest_key = "file:k"', at_rest_key="env:K").at_rest_key == "env:K"
    with pytest.raises(ConfigError, match=r"at_rest_key must be a text, such as 'file:at-rest\.key'"):
        read(tmp_path, "at_rest_key = 3")


def test_without_a_file_everything_has_its_default() -> None:
    assert read_config(None, {}, {}) == ServeConfig()


def test_a_file_sets_everything_and_the_command_line_changes_it(tmp_path: Path) -> None:
    save_key(tmp_path / "web.key")
    config = read(
        tmp_path,
        f"""
        host = "0.0.0.0"
        port = 9000
        rows = 4
        cache_memory = "512MiB"
        adapter_folder = "adapters"
        [adapters]
        tone = "adapters/tone"
        [limits]
        max_n = 2
        send_timeout_s = 5
        [[keys]]
        name = "web"
        key_file = "web.key"
        models = ["tone", "team-*"]
        requests_per_minute = 60
        [[keys]]
        name = "ops"
        key_sha256 = "{key_digest(OTHER).hex()}"
        """,
        port=9001,
        adapters={"billing": "elsewhere/billing"},
        limits={"shutdown_timeout_s": 3.0},
    )
    assert (config.host, config.port, config.rows, config.cache_bytes) == ("0.0.0.0", 9001, 4, 512 << 20)
    assert config.adapters == {"tone": str(tmp_path / "adapters/tone"), "billing": "elsewhere/billing"}
    assert config.adapter_folder == str(tmp_path / "adapters")
    assert config.limits == Limits(max_n=2, send_timeout_s=5.0, shutdown_timeout_s=3.0)
    assert [(key.name, key.digest, key.models, key.requests_per_minute) for key in config.keys] == [
        ("web", key_digest(KEY), ("tone", "team-*"), 60),
        ("ops", key_digest(OTHER), (), 0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "serve.toml: unknown key prot; did you mean port?"),
        ("[limits]\nmax_token = 1", "serve.toml: limits: unknown key max_token; did you mean max_tokens?"),
        ("[[keys]]\nname = 'a'\nmodel = ['x']", "keys, number 1: unknown key model; did you mean models?"),
        ("port = '1'", "port must be a valid integer, got '1'"),
        ("port = true", "port must be a valid integer, got True"),
        ("port = 70000", "serve.toml: port must be from 0 to 65535, got 70000"),
        ("rows = 0", "rows must be from 1"),
        ("cache_memory = 'much'", "cache_memory: expected a size such as 512MiB"),
        ("cache_memory = '0'", "must be above 0"),
        ("adapters = 'x'", "adapters must be a table"),
        ("[adapters]\n'a b' = 'x'", "an adapter cannot be called 'a b'"),
        ("[adapters]\na = 3", "adapters: a must be a path, got 3"),
        ("[limits]\nmax_n = 0", "limits.max_n must be above 0"),
        ("[limits]\nmax_adapters = 65", "limits.max_adapters must be at most 64, got 65"),
        ("[limits]\nsend_timeout_s = nan", "limits.send_timeout_s must be above 0"),
        ("keys = 3", "keys must be a list of tables"),
        ("[[keys]]\nkey = 'a-key-of-the-web-0123'", "keys, number 1: name is missing"),
        ("[[keys]]\nname = ''", "keys, number 1: name must be 1 to 64 printable characters, got ''"),
        ("[[keys]]\nnam = 'a'\nkey = 'a-key-of-the-web-0123'", "keys, number 1: unknown key nam; did you mean name?"),
        ("[[keys]]\nname = 'a'\nkey = ['a-key-of-the-web-0123']", "expected one of key, key_sha256, key_file, key_env"),
        ("keys = ['a-key-of-the-web-0123']", "keys, number 1 must be a table"),
        ("admin = 'a-key-of-the-web-0123'", "unknown key admin; did you mean admin_key?"),
        ("limits = 3", "limits must be a table, got 3"),
        ("access_log = 1", "access_log must be a valid boolean, got 1"),
        ("[limits]\nmax_n = 2.0", "limits: max_n must be a valid integer, got 2.0"),
        ("[[keys]]\nname = 'a'", "expected one of key, key_sha256, key_file, key_env"),
        ("[[keys]]\nname = 'a'\nkey = 'short'", "a key is 16 to 512 printable characters"),
        ("[[keys]]\nname = 'a'\nkey_sha256 = 'ab'", "64 hexadecimal digits"),
        ("[[keys]]\nname = 'a'\nkey_file = 'none.key'", "none.key: cannot be read: No such file"),
        ("[[keys]]\nname = 'a'\nkey_env = 'NONE'", "the environment has no NONE"),
        ("[[keys]]\nname = 'a'\nkey = 'a-key-of-the-web-0123'\nmodels = []", "models must be a list of names"),
        ("[[keys]]\nname = 'a'\nkey = 'a-key-of-the-web-0123'\ntokens_per_minute = -1", "tokens_per_minute must be"),
        ("admin_key = 'x'\nadmin_key_env = 'Y'", "expected one of key, key_sha256, key_file, key_env"),
        ("port = ", "not TOML"),
    ],
)
def test_a_mistake_is_answered_with_its_place_and_what_is_taken(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "a-key-of-the-web" not in str(error.value)


def test_two_keys_of_one_name_or_one_value_are_refused(tmp_path: Path) -> None:
    entry = "[[keys]]\nname = '{}'\nkey = '{}'\n"
    with pytest.raises(ConfigError, match="two have the name 'a'"):
        read(tmp_path, entry.format("a", KEY) + entry.format("a", OTHER))
    with pytest.raises(ConfigError, match="'a' is the same key as another one"):
        read(tmp_path, entry.format("a", KEY) + entry.format("b", KEY))
    with pytest.raises(ConfigError, match="or as the admin key"):
        read(tmp_path, entry.format("a", KEY), {"FEDLORA_ADMIN_KEY": KEY})


def test_the_admin_key_comes_from_the_environment_or_the_file_but_not_both(tmp_path: Path) -> None:
    save_key(tmp_path / "admin.key")
    assert read(tmp_path, "", {"FEDLORA_ADMIN_KEY": KEY}).admin == key_digest(KEY)
    assert read(tmp_path, "admin_key_file = 'admin.key'").admin == key_digest(KEY)
    assert read(tmp_path).admin is None
    with pytest.raises(ConfigError, match="leave one of them"):
        read(tmp_path, "admin_key_file = 'admin.key'", {"FEDLORA_ADMIN_KEY": KEY})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_may_be_served_without_keys(host: str) -> None:
    ServeConfig(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_others_are_served_with_keys_or_by_saying_so(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--allow-open"):
        ServeConfig(host=host)
    ServeConfig(host=host, allow_open=True)
    assert read(tmp_path, f"host = '{host}'\n[[keys]]\nname = 'a'\nkey = '{KEY}'").host == host


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 1 << 30), ("512 MiB", 512 << 20), ("1.5gib", 3 << 29), ("100", 100), (7, 7), ("0.5KiB", 512)],
)
def test_a_size_is_read_as_people_write_it(text: str | int, size: int) -> None:
    assert byte_size(text, "x") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1GB", "1e9", "1 2", "inf", True, "1.GiB", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="x: expected a size"):
        byte_size(text, "x")


def test_a_size_is_shown_with_its_unit() -> None:
    assert [shown_size(n) for n in (10, 1536, 3 << 29, 5 << 40)] == ["10 bytes", "1.5 KiB", "1.5 GiB", "5120 GiB"]


def test_no_limit_can_be_switched_off() -> None:
    for value in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"limits\.request_timeout_s must be above 0"):
            Limits(request_timeout_s=value)


@pytest.mark.parametrize("text", ["", "\n"])
def test_the_digest_of_an_empty_text_is_no_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="the admin key: key_sha256 is of an empty text"):
        read(tmp_path, f"admin_key_sha256 = '{key_digest(text).hex()}'")


def test_a_bad_admin_key_from_the_environment_is_told_by_its_name_there() -> None:
    with pytest.raises(ConfigError, match=r"^FEDLORA_ADMIN_KEY, the admin key: a key is 16 to 512"):
        read_config(None, {}, {"FEDLORA_ADMIN_KEY": "short"})


@pytest.mark.parametrize("entry", ["admin_key_file = 'k'", "[[keys]]\nname = 'a'\nkey_file = 'k'"])
def test_a_key_that_others_may_read_is_refused_with_the_command_that_closes_it(tmp_path: Path, entry: str) -> None:
    save_key(tmp_path / "k")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(ConfigError, match=rf"serve\.toml: .*mode 0644.*chmod 600 {tmp_path}/k") as told:
        read(tmp_path, entry)
    assert KEY not in str(told.value)
    (tmp_path / "k").chmod(0o400)
    read(tmp_path, entry)


@pytest.mark.parametrize("entry", ["admin_key = '{}'", "[[keys]]\nname = 'a'\nkey = '{}'"])
def test_a_key_in_a_configuration_that_others_may_read_is_taken_with_a_warning(
    tmp_path: Path, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path, entry.format(KEY))
    assert "chmod 600" in caplog.text
    assert KEY not in caplog.text
    caplog.clear()
    (tmp_path / "serve.toml").chmod(0o600)
    read(tmp_path, entry.format(KEY))
    (tmp_path / "serve.toml").chmod(0o644)
    read(tmp_path, f"[[keys]]\nname = 'a'\nkey_sha256 = '{key_digest(KEY).hex()}'")
    assert caplog.text == ""


def test_a_file_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").symlink_to("serve.toml")
    with pytest.raises(ConfigError, match=r"serve\.toml: cannot be read"):
        read_config(tmp_path / "serve.toml", {}, {})
