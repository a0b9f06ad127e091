"""What an adapter may be called."""

from __future__ import annotations

import pytest
from fedlora.errors import ConfigError
from fedlora_serve.adapters.leases import check_adapter_name


@pytest.mark.parametrize("name", ["a", "A-1", "team/billing-v2", "run:3", "a.b_c", "7", "x" * 128])
def test_a_plain_name_is_taken(name: str) -> None:
    check_adapter_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        ".hidden",
        "/etc",
        "-x",
        "..",
        "a/../b",
        "a..b",
        "a//b",
        "a/",
        "a b",
        "a\n",
        "\n",
        "ä",
        "x" * 129,
        "a\x00",
    ],
)
def test_a_name_that_would_not_stand_as_it_is_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="an adapter cannot be called"):
        check_adapter_name(name)
