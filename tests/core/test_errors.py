"""One tree of errors."""

from __future__ import annotations

import inspect

import pytest
from fedlora import errors
from fedlora.errors import ConfigError, FedloraError, UpdateError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_caught_as_the_root_and_drawn_in_the_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, FedloraError)
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_refused_update_has_a_reason_beside_its_message() -> None:
    error = UpdateError("late", "it came too late")
    assert (error.reason, str(error)) == ("late", "it came too late")


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\x1b[31mred", "\u202egnp", "\x00", "\u2028"])
def test_what_a_stranger_wrote_begins_no_line_and_steers_no_terminal(text: str) -> None:
    for error in (ConfigError(f"x.json: {text}; mend it"), UpdateError("late", text)):
        assert str(error).isprintable()
    assert str(ConfigError("a\nb")) == "a\\nb"


def test_a_message_is_not_as_long_as_what_a_stranger_wrote() -> None:
    told = str(ConfigError(f"x.json: {'a' * 10**6}; mend it"))
    assert len(told) < 5000
    assert told.startswith("x.json: ")
    assert told.endswith("; mend it")
