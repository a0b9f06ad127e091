"""How long a regular expression of a stranger can search, told from its source.

The library `tokenizers` searches by trying (Oniguruma). What is repeated and is itself of several lengths or several forms
can be cut in exponentially many ways, so there is none of that. A repetition after which something must still be found is
tried at each of its lengths, and a second one multiplies these: there may be one, so that a search takes the square of the
text's length at most. The patterns of the models that are known have no more.

    \\s+(?!\\S)          one: the blanks are tried at each length until what follows is right
    [^\\s]+[\\r\\n]*      none: whatever is found is right
    a*a*b               two: refused; 1000 letters take minutes
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_CHARACTERS = 1 << 13
_MAX_DEPTH = 32
_MAX_IN_A_ROW = 4  # repetitions without a bound in one alternative
_MAX_TRIED = 1  # of these, such as something must follow
_MAX_OPTIONAL = 12  # of parts that may be there or not in one alternative
_MAX_TIMES = 1 << 10  # of a part that is repeated so many times, those within it multiplied
_FEW = 16  # as many times are still a choice, and no repetition without a bound

_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d*)(?:(,)(\d*))?\})([?+]*)")
_ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|c.|C-.|M-.|.)", re.DOTALL)
_GROUP = re.compile(r"\?(?:[a-zA-Z-]*:|[a-zA-Z-]+\)|[=!>]|<[=!]|<[A-Za-z_]\w*>|#[^)]*\))")


@dataclass(slots=True)
class _Level:
    """What stands in one group so far."""

    open: int = 0  # repetitions without a bound in this alternative, after which nothing has to follow yet
    tried: int = 0  # ... and those after which something has to
    optional: int = 0
    worst_open: int = 0  # of all alternatives before
    worst_tried: int = 0
    worst_optional: int = 0
    looks: bool = False  # whether it takes nothing: what it found is not tried again
    varies: bool = False  # whether there are several lengths or forms
    is_atomic: bool = False  # whether only the first of these is tried
    times: int = 1  # of the part within it that is repeated most

    def next_alternative(self) -> None:
        self.worst_open = max(self.worst_open, 0 if self.is_atomic or self.looks else self.open)
        self.worst_tried = max(self.worst_tried, self.tried)
        self.worst_optional = max(self.worst_optional, self.optional)
        self.open = self.tried = self.optional = 0


def check_regex(source: str) -> None:
    """Raises ValueError, as the end of a sentence, where a search could take much longer than the text is long."""
    if len(source) > _MAX_CHARACTERS:
        raise ValueError(f"is longer than {_MAX_CHARACTERS} characters")
    levels = [_Level()]
    place = 0
    while place < len(source):
        atom: _Level | None = None  # the group that ends here
        letter = source[place]
        if letter == "(":
            place = _opened(source, place, levels)
            continue
        if letter == "|":
            levels[-1].next_alternative()
            levels[-1].varies = True
            place += 1
            continue
        if letter == ")":
            if len(levels) == 1:
                raise ValueError("closes a group that it did not open")
            atom = levels.pop()
            atom.next_alternative()
            place += 1
        elif letter == "[":
            place = _class_end(source, place)
        elif letter == "\\":
            place = _escape_end(source, place)
        else:
            place += 1
        place = _quantified(source, place, levels[-1], atom)
    if len(levels) > 1:
        raise ValueError("has a group without an end")


def _opened(source: str, place: int, levels: list[_Level]) -> int:
    """The place after the beginning of a group; a comment and a change of options are none."""
    begin = place = place + 1
    if source.startswith("?", place):
        found = _GROUP.match(source, place)
        if not found:
            raise ValueError("has a group of a kind that no tokenizer needs")
        place = found.end()
        if found[0].endswith(")"):
            return place
    elif source.startswith("*", place):
        raise ValueError("has a group of a kind that no tokenizer needs")
    if len(levels) > _MAX_DEPTH:
        raise ValueError(f"has groups more than {_MAX_DEPTH} deep")
    looks = re.compile(r"\?<?[=!]").match(source, begin) is not None
    levels.append(_Level(is_atomic=source.startswith("?>", begin), looks=looks))
    return place


def _escape_end(source: str, place: int) -> int:
    found = _ESCAPE.match(source, place)
    if not found:
        raise ValueError("ends within an escape")
    if found[0][1] in "123456789gkKX":
        raise ValueError(f"has {found[0][:2]}, which refers to what was found before, or is of many lengths")
    return found.end()


def _class_end(source: str, place: int) -> int:
    """The place after a class of characters, which may hold others."""
    depth = 0
    while place < len(source):
        if source[place] == "\\":
            place = _escape_end(source, place)
            continue
        if source[place] == "[":
            depth += 1
            place += 2 if source.startswith("^", place + 1) else 1
            if source.startswith("]", place):  # the first of a class is a letter
                place += 1
            continue
        place += 1
        if source[place - 1] == "]":
            depth -= 1
            if not depth:
                return place
    raise ValueError("has a class of characters without an end")


def _quantified(source: str, place: int, level: _Level, group: _Level | None) -> int:
    """The place after the quantifiers of an atom, which counts in the alternative that it stands in."""
    least, most, within = 1, 1, group.varies and not group.is_atomic if group else False
    times = group.times if group else 1
    repeated = is_possessive = False
    while found := _QUANTIFIER.match(source, place):
        low, high = _bounds(found)
        if low is None:  # braces that are letters
            break
        if repeated:
            raise ValueError("repeats a repetition")
        least, most, repeated = low, high, True
        if len(found[4]) > 1 or (found[0][0] == "{" and "+" in found[4]):
            raise ValueError("repeats a repetition")
        is_possessive = found[4] == "+"
        place = found.end()
    if most > 1 and within:
        raise ValueError("repeats a group that is itself of several lengths or forms")
    times *= max(1, min(most, _MAX_TIMES + 1) if most < _UNBOUNDED else least)
    if times > _MAX_TIMES:
        raise ValueError(f"repeats something more than {_MAX_TIMES} times")
    level.times = max(level.times, times)
    if least:
        level.tried, level.open = level.tried + level.open, 0
    if most - least > _FEW:
        level.open += not is_possessive
    elif most > least:
        level.optional += most - least
    if group is not None:
        level.open, level.tried = level.open + group.worst_open, level.tried + group.worst_tried
        level.optional += group.worst_optional
    level.varies |= most > least or within
    if level.tried > _MAX_TRIED:
        raise ValueError("has two repetitions after both of which something must follow")
    if level.open > _MAX_IN_A_ROW or level.optional > _MAX_OPTIONAL:
        raise ValueError(
            f"has more than {_MAX_IN_A_ROW} repetitions or {_MAX_OPTIONAL} optional parts one after another"
        )
    return place


_UNBOUNDED = 1 << 30


def _bounds(quantifier: re.Match[str]) -> tuple[int | None, int]:
    """(least, most) times; (None, 0) where the braces hold no number."""
    sign = quantifier[0][0]
    if sign != "{":
        return {"*": (0, _UNBOUNDED), "+": (1, _UNBOUNDED), "?": (0, 1)}[sign]
    low, comma, high = quantifier[1], quantifier[2], quantifier[3]
    if not low and not high:
        return None, 0
    least = int(low or 0)
    most = least if not comma else int(high) if high else _UNBOUNDED
    if least > _MAX_TIMES or _MAX_TIMES < most < _UNBOUNDED:
        raise ValueError(f"repeats something more than {_MAX_TIMES} times")
    return min(least, most), max(least, most)
