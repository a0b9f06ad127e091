"""What is said about a name that is not known."""

from __future__ import annotations

from fedlora.nearest import hint, unknown_key

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
