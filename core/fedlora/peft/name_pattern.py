"""A regular expression that names modules, matched in time that is linear in the name.

PEFT finds a module's rank and alpha by regular expressions. One from a stranger can make Python's own matcher run for ever,
so they are matched by Google's RE2, which takes at most one step for each of a pattern's parts and each character. What RE2
does not know (lookaround, back references) is refused, and so is what Python does not. Both agree on names in ASCII.
"""

from __future__ import annotations

import re
import warnings

import re2

from fedlora.errors import ConfigError

_MAX_LENGTH = 512  # of a pattern
_MAX_STEPS = 25_000_000  # over all names that a pattern is matched against: a fifth of a second
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # to stderr: they are raised
_OPTIONS.never_capture = True
_OPTIONS.max_mem = 1 << 20
# Escapes, so that what follows one is never taken for anything else; then what only one of Python and RE2 reads this way.
_TOKEN = re.compile(r"\\(?P<escaped>.)|(?P<group>\(\?(?!:|P<))|(?P<named>\[:|\{,\d*\})", re.DOTALL)
_KNOWN_ESCAPES = "dDsSwW"


class NamePattern:
    """A pattern as PEFT takes one: it fits a name, or the end of one after a dot."""

    def __init__(self, pattern: str) -> None:
        """Raises ConfigError for what is no pattern, or none that RE2 matches as Python does."""
        self.pattern = pattern
        self._steps = 0
        if len(pattern) > _MAX_LENGTH:
            raise self._refusal(f"it is longer than {_MAX_LENGTH} characters")
        if not _is_utf8(pattern):
            raise self._refusal("it is not UTF-8 text")
        for token in _TOKEN.finditer(pattern):
            escaped = token["escaped"]
            if token["group"]:
                raise self._refusal("lookaround and flags are not known")
            if token["named"] or (escaped and escaped.isalnum() and escaped not in _KNOWN_ESCAPES):
                raise self._refusal(f"{token[0]} is not known")
        try:
            re2.compile(pattern, _OPTIONS)  # by itself: its brackets must not close the ones around it
            self._compiled = re2.compile(rf"(?:.*\.)?(?:{pattern})$", _OPTIONS)
        except re2.error as error:
            raise self._refusal(error.args[0].decode(errors="replace")) from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                re.compile(pattern)  # compiling is bounded; only matching is not
        except (re.error, OverflowError, RecursionError) as error:
            raise self._refusal(str(error)) from None

    def matches(self, name: str) -> bool:
        """Raises ConfigError once the matching has taken too many steps, and for a name that is not UTF-8 text."""
        if not _is_utf8(name):
            raise ConfigError(f"{name!r:.120} is not UTF-8 text; a module is not called so")
        self._steps += self._compiled.programsize * (len(name) + 1)
        if self._steps > _MAX_STEPS:
            raise self._refusal("it takes too many steps to match; write it more simply")
        return self._compiled.match(name) is not None

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"{self.pattern!r:.120} in a pattern is not understood: {why}")


def _is_utf8(text: str) -> bool:
    """False where it holds half of a surrogate pair, which JSON can write and RE2 cannot read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
