"""server.toml is read as it was written, and what makes no server is refused by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.config.run import Scalar
from fedlora.errors import ConfigError
from fedlora_server.fleet.settings import FleetSettings, read_settings, settings_text
from hypothesis import given
from hypothesis import strategies as st


def read(folder: Path, text: str) -> FleetSettings:
    (folder / "server.toml").write_text(text)
    return read_settings(folder)


@pytest.mark.parametrize("host", ["fleet.example.org", "10.0.0.7", "2001:db8::7", "localhost"])
def test_settings_are_read_as_they_were_written(tmp_path: Path, host: str) -> None:
    run: dict[str, Scalar] = {
        "name": "fleet",
        "data.name": "files",
        "server.rounds": 3,
        "train.lr": 0.001,
        "server.evaluate": False,
    }
    made = FleetSettings(folder=tmp_path, host=host, names=("other", "::1"), port=1234, listen_port=1235, run=run)
    assert read(tmp_path, settings_text(made)) == made


def test_a_base_counts_from_the_file_and_nano_from_nowhere(tmp_path: Path) -> None:
    text = 'host = "a"\n[run]\nbase = "{}"'
    assert read(tmp_path, text.format("packs/../mine")).run["base"] == str(tmp_path / "mine")
    assert read(tmp_path, text.format("/packs/mine")).run["base"] == "/packs/mine"
    assert read(tmp_path, text.format("nano")).run["base"] == "nano"


def test_the_key_of_files_at_rest_counts_from_the_file_and_is_written_back(tmp_path: Path) -> None:
    settings = read(tmp_path, 'host = "a"\nat_rest_key = "file:k"')
    assert settings.at_rest_key == f"file:{tmp_path / 'k'}"
    assert read(tmp_path, settings_text(settings)) == settings
    with pytest.raises(ConfigError, match="at_rest_key texts"):
        read(tmp_path, 'host = "a"\nat_rest_key = 3')


def test_a_base_in_the_home_of_nobody_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.toml: run\.base: ~nobody-here-99/x: .*give the whole path"):
        read(tmp_path, 'host = "a"\n[run]\nbase = "~nobody-here-99/x"')


@given(st.text(max_size=40), st.integers(-10, 70000))
def test_whatever_settings_are_made_of_they_are_refused_by_us_or_are_an_address(host: str, port: int) -> None:
    try:
        made = FleetSettings(folder=Path("x"), host=host, port=port, run={})
    except ConfigError as error:
        assert str(error).isprintable()
    else:
        assert made.address.endswith(f":{port}")
        assert "/" not in made.address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "host must be a text"),
        ('host = "a:1"', "host: 'a:1'"),
        ('host = "https://a"', "host: 'https://a'"),
        ('host = "a"\nport = 0', "port: 0"),
        ('host = "a"\nport = "8443"', "port: '8443'"),
        ('host = "a"\nlisten = "localhost"', "listen: 'localhost'"),
        ('host = "a"\nnames = "b"', "names must be a list"),
        ('host = "a"\nlissten = "b"', "did you mean listen"),
        ('host = "a"\n[run]\noutput = "x"', "run.output"),
        ('host = "a"\n[run.server]\nresume = true', "run.server.resume"),
        ('host = "a"\n[run.server]\nround = 3', "unknown key server.round"),
        ("host = ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "server.toml"))


def test_a_folder_without_settings_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"fedlora server init {tmp_path}"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("listen", "is_open"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("10.0.0.7", True)]
)
def test_it_is_known_whether_superlink_is_open_to_other_machines(listen: str, is_open: bool) -> None:
    assert FleetSettings(folder=Path("x"), host="a", listen=listen, run={}).is_open is is_open


def test_superlink_is_reached_on_this_machine_wherever_it_listens() -> None:
    assert FleetSettings(folder=Path("x"), host="a", listen="0.0.0.0", run={}).control == "127.0.0.1:8443"
    assert FleetSettings(folder=Path("x"), host="a", listen="::", run={}).control == "[::1]:8443"
