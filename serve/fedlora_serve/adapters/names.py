"""What an adapter may be called: a name that stands in addresses, paths and logs as it is."""

from __future__ import annotations

import re

from fedlora.errors import ConfigError

_NAME = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9]([A-Za-z0-9._:/-]{0,126}[A-Za-z0-9._:-])?")


def check_adapter_name(name: str) -> None:
    """Raise ConfigError unless `name` is like `team/billing-v2`: at most 128 letters, digits and `. _ : / -`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"an adapter cannot be called {name!r:.140}; a name is 1 to 128 of A-Z a-z 0-9 . _ : / -, begins with a letter "
            "or a digit, ends with no slash, and has neither '..' nor '//'"
        )
