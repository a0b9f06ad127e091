"""One tree of errors."""

from __future__ import annotations

import inspect

import pytest
from fedlora import errors
from fedlora.errors import FedloraError, UpdateError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_caught_as_the_root_and_drawn_in_the_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, FedloraError)
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_refused_update_has_a_reason_beside_its_message() -> None:
    error = UpdateError("late", "it came too late")
    assert (error.reason, str(error)) == ("late", "it came too late")
