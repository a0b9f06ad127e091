"""TOML that goes too far is refused in time, and JSON too."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.errors import ConfigError
from fedlora.files.documents import read_toml

DEEP = 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x" + ".x" * DEEP + " = 1", "line 1 has 100000 dots"),  # tomllib takes the square of them, in memory too
        ("a = 1\n[x" + ".x" * DEEP + "]", "line 2 has 100000 dots"),
        ("x" + ".x" * 100 + " = 1", "within one another"),
        ("x = " + "[" * 40 + "]" * 40, "within one another"),
        ("x = " + "[" * DEEP + "]" * DEEP, "not TOML"),
        ("x = " + "1" * 5000, "not TOML"),
        ("x = 1\nx = 2", "not TOML"),
        ('x = "a\\u0000b"', "a text with a null character"),
        ('x = [[{y = "\\U00000000"}]]', "a text with a null character"),
        ('"\\u0000" = 1', "a text with a null character"),
    ],
)
def test_toml_that_goes_too_far_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as refused:
        read_toml(path)
    assert str(refused.value).startswith(str(path))


def test_toml_as_deep_and_long_as_people_write_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('a.b.c.d = 1\ntext = "' + "." * 500 + '"\nlist = [[[1], [2]], [{a = {b = 3}}]]\n', encoding="utf-8")
    assert read_toml(path) == {
        "a": {"b": {"c": {"d": 1}}},
        "text": "." * 500,
        "list": [[[1], [2]], [{"a": {"b": 3}}]],
    }


def test_a_folder_in_the_place_of_a_file_is_told_with_what_may_have_been_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder; expected a TOML file, and there is none in it"):
        read_toml(tmp_path)
    (tmp_path / "rounds").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"it holds a run: fedlora resume {tmp_path} goes on with it"):
        read_toml(tmp_path)
    (tmp_path / "a.toml").write_text("")
    with pytest.raises(ConfigError, match=rf"expected a TOML file, such as {tmp_path}/a.toml"):
        read_toml(tmp_path)
    for name in "bcdefg":
        (tmp_path / f"{name}.toml").write_text("")
    with pytest.raises(ConfigError, match=r"expected a TOML file: name one of .*\.toml, \.\.\.$"):
        read_toml(tmp_path)
