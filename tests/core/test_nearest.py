"""What is said about a name that is not known."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.errors import ConfigError
from fedlora.nearest import beside, check_there, hint, unknown_key

KNOWN = ("steps", "step_size", "lr")


def test_the_likest_names_are_told_first_and_no_more_than_asked_for() -> None:
    assert hint("step", KNOWN, "none") == "did you mean steps?"
    assert hint("step", KNOWN, "none", most=3) == "did you mean steps, step_size?"


def test_where_none_is_like_it_something_else_is_said() -> None:
    assert hint("colour", KNOWN, "none") == "none"
    assert hint("colour", (), "none") == "none"


def test_an_unknown_key_is_told_with_its_place_and_all_keys_where_none_is_like_it() -> None:
    assert str(unknown_key("stps", KNOWN, "x.toml")) == "x.toml: unknown key stps; did you mean steps?"
    assert str(unknown_key("!", KNOWN, "x.toml")) == "x.toml: unknown key !; known keys: steps, step_size, lr"


def test_a_name_of_any_length_is_compared_with_a_bounded_number_of_names() -> None:
    names = (f"name-{number}" for number in range(10**9))
    assert hint("name-7" + "x" * 10**6, names, "none") == "none"
    assert hint("name-7", (f"name-{number}" for number in range(10**9)), "none") == "did you mean name-7?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("notes.txt", "demo.toml", "model/decoder.onnx", "runs/first/config.json", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("note.txt", "did you mean {}/notes.txt?"),
        ("demo.tml", "did you mean {}/demo.toml?"),
        ("modle", "did you mean {}/model?"),
        ("runs/frist", "did you mean {}/runs/first?"),
        ("run/first/config.json", "there is no {}/run; did you mean {}/runs?"),
        ("study.toml", "beside it: demo.toml, model, notes.txt, runs"),
        ("nanoo", "did you mean nano?"),
        ("notes.txt/inside", ""),
        ("notes.txt", ""),
        ("hidden", "beside it: demo.toml, model, notes.txt, runs"),
    ],
)
def test_a_path_at_which_nothing_lies_is_told_with_what_lies_beside_it(folder: Path, path: str, said: str) -> None:
    assert beside(folder / path, ("nano",)) == said.replace("{}", str(folder))


def test_many_neighbours_are_not_all_told(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04d}").write_text("")
    said = beside(tmp_path / "other")
    assert said.startswith("beside it: ")
    assert said.endswith(", ...")
    assert len(said) < 60


@pytest.mark.parametrize("path", ["/", ".", "", "\0", "a\0b/c", "x" * 5000])
def test_any_text_may_be_asked_for_as_a_path(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "Traceback" not in beside(path)


def test_of_rounds_it_tells_which_there_are(tmp_path: Path) -> None:
    for number in (1, 2, 3, 5):
        (tmp_path / "rounds" / f"{number:04d}").mkdir(parents=True)
    missing = tmp_path / "rounds/0007"
    assert beside(missing) == "beside it: 0001 to 0003, 0005"
    assert beside(missing / "adapter") == f"there is no {missing}; beside it: 0001 to 0003, 0005"


def test_a_path_that_is_there_or_a_known_name_is_no_error(folder: Path) -> None:
    check_there(folder / "demo.toml")
    check_there("nano", ("nano",))
    (folder / "gone").symlink_to(folder / "nowhere")
    check_there(folder / "gone")  # what is wrong with a link is for its reader to say
    with pytest.raises(ConfigError, match=r"note\.txt: there is no such file or folder; did you mean .*/notes\.txt\?"):
        check_there(folder / "note.txt")
