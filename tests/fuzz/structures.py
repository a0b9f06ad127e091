"""Documents of a sound shape that go too far: nested, grown, repeated, referring elsewhere, of another kind.

Damage alone is refused by the first parser. What is here passes it: the text stays JSON (but for keys that come twice, and
numbers that JSON does not have), and what is in it no longer fits together.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_CHARACTERS = 1 << 21  # of one document: work that comes of more than that is bounded by the file's size

Chance = random.Random
Change = Callable[[Any, Any, Any, Chance, Sequence[str]], None]  # of a place: (holder, key, root, chance, names)


@dataclass(frozen=True, slots=True)
class Raw:
    """A value that is written as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """An object, as a list of [key, value]: a key may come twice."""

    items: list[list[Any]]


NUMBERS = (
    "0", "-0", "-1", "1", "0.5", "1e308", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "9007199254740993",
    "2147483648",
    "-2147483649", "4294967296", "18446744073709551616", "1" * 400, "1" * 5000, "1e999999999", "1.0", "true",
)  # fmt: skip
TEXTS = (
    "", "\0", "\ud800", "\u202e", "e\u0301" * 20, "a" * 70_000, "..", "../..", "/", "/dev/zero", "/etc/passwd", "~",
    "%s%n",
    "{0.__class__}", "{{ 7 * 7 }}", "{% for a in range(10**9) %}{% endfor %}", "<s>", "</s>", "<|im_end|>",
    "(a+)+$", ".*" * 50,
    "(?=a)" * 9, "\n", "a\nb", "'; --", "nan", "1e999", "None", "__proto__", "model.layers.0.self_attn.q_proj",
    "lora_A",
)  # fmt: skip
DEPTHS, COUNTS = (2, 30, 400, 3000, 100_000), (2, 17, 300, 5000, 70_000)


def mutated(value: Any, chance: Chance, names: Sequence[str] = ()) -> str:
    """The text of a JSON document like `value` with one or a few places changed; `names` are of files beside it."""
    root = [_opened(value)]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(root))
        holder, key = chance.choice(places)
        chance.choice(_CHANGES)(holder, key, root, chance, names)
    return "".join(_text(root[0]))[: 2 * MOST_CHARACTERS]


def _opened(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs([[key, _opened(inner)] for key, inner in value.items()])
    return [_opened(inner) for inner in value] if isinstance(value, list) else value


def _places(value: Any) -> Any:
    """(list, index) of every value; of an object, of its pairs."""
    if isinstance(value, Pairs):
        for pair in value.items:
            yield pair, 1
            yield from _places(pair[1])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield value, index
            yield from _places(inner)


def _text(value: Any) -> Any:
    if isinstance(value, Raw):
        yield value.text
    elif isinstance(value, Pairs):
        yield "{"
        for index, (key, inner) in enumerate(value.items):
            yield f"{',' if index else ''}{json.dumps(key)}:"
            yield from _text(inner)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, inner in enumerate(value):
            yield "," if index else ""
            yield from _text(inner)
        yield "]"
    else:
        yield json.dumps(value)


def _written(value: Any) -> str:
    return "".join(_text(value))


def _nested(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    begin, end = chance.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ("[[],", "]")))
    depth = chance.choice(DEPTHS)
    holder[key] = Raw(begin * depth + _written(holder[key]) + end * depth)


def _grown(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    value, count = holder[key], chance.choice(COUNTS)
    if isinstance(value, str) and chance.random() < 0.5:
        holder[key] = (value or "a") * min(count, MOST_CHARACTERS // (len(value) or 1))
        return
    item = chance.choice(value) if isinstance(value, list) and value else value
    if isinstance(value, Pairs) and value.items and chance.random() < 0.7:
        name, item = chance.choice(value.items)
        text = _written(item)
        count = min(count, MOST_CHARACTERS // (len(text) + len(name) + 9))
        value.items.extend([f"{name}{number}", Raw(text)] for number in range(count))
        return
    text = _written(item)
    holder[key] = Raw("[" + ",".join([text] * min(count, MOST_CHARACTERS // (len(text) + 1) + 1)) + "]")


def _repeated_key(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    objects = [value for value in _values(root) if isinstance(value, Pairs) and value.items]
    if objects:
        chosen = chance.choice(objects)
        name, value = chance.choice(chosen.items)
        other = chance.choice(list(_values(root)))
        chosen.items.insert(
            chance.randrange(len(chosen.items) + 1), [name, Raw(_written(chance.choice((value, other, None))))]
        )


def _values(root: Any) -> Any:
    for holder, key in _places(root):
        yield holder[key]


def _swapped(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    """The same content as another kind of value."""
    value = holder[key]
    if isinstance(value, Pairs):
        others: list[Any] = [
            [[name, inner] for name, inner in value.items],
            [name for name, _ in value.items],
            _written(value),
        ]
    elif isinstance(value, list):
        others = [Pairs([[str(i), inner] for i, inner in enumerate(value)]), (value or [None])[0], _written(value)]
    elif isinstance(value, str):
        others = [list(value[:100]), [value], Pairs([["content", value]]), Pairs([[value, value]]), len(value)]
    elif isinstance(value, bool) or value is None:
        others = [0, 1, str(value), [], Pairs([]), not value]
    elif isinstance(value, Raw):
        others = [None]
    else:
        others = [str(value), [value], float(value), -value, bool(value), Pairs([["value", value]]), value + 0.5]
    holder[key] = chance.choice([*others, None])


def _referring(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    """A name that stands elsewhere: of a key, a value, a file beside it, a folder around it."""
    strings = [value for value in _values(root) if isinstance(value, str)]
    keys = [name for value in _values(root) if isinstance(value, Pairs) for name, _ in value.items]
    pool = [*strings, *keys, *names, *(f"../{name}" for name in names), *(f"/{name}" for name in names), *TEXTS]
    pairs = [value for value in _values(root) if isinstance(value, Pairs) and value.items]
    if pairs and chance.random() < 0.4:
        chance.choice(chance.choice(pairs).items)[0] = chance.choice(pool)
    else:
        holder[key] = chance.choice(pool)


def _elsewhere(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    """The value of another place."""
    holder[key] = Raw(_written(chance.choice(list(_values(root)))))


def _numbered(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    numbers = [(inner, index) for inner, index in _places(root) if isinstance(inner[index], (int, float))]
    inner, index = chance.choice(numbers or [(holder, key)])
    value = inner[index]
    near = [str(value + step) for step in (-1, 1)] if type(value) is int else []
    inner[index] = Raw(chance.choice((*NUMBERS, *near)))


def _said(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    strings = [(inner, index) for inner, index in _places(root) if isinstance(inner[index], str)]
    inner, index = chance.choice(strings or [(holder, key)])
    value = inner[index] if isinstance(inner[index], str) else ""
    other = chance.choice(TEXTS)
    inner[index] = chance.choice((other, value + other, other + value, value.replace(value[:1] or "a", other)[:70_000]))


def _gone(holder: Any, key: Any, root: Any, chance: Chance, names: Sequence[str]) -> None:
    objects = [value for value in _values(root) if isinstance(value, Pairs) and value.items]
    if objects and chance.random() < 0.7:
        items = chance.choice(objects).items
        del items[chance.randrange(len(items))]
    else:
        holder[key] = chance.choice((None, Pairs([]), [], ""))


_CHANGES: Sequence[Change] = (
    _nested, _grown, _repeated_key, _swapped, _swapped, _referring, _referring, _elsewhere, _numbered, _numbered,
    _said, _said,
    _gone,
)  # fmt: skip
