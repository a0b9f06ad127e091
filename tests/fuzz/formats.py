"""Files of every format that is read, changed in their structure: {suffix: what changes a sound file's bytes}."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import tomllib
from collections.abc import Callable, Mapping, Sequence

import tomli_w

from tests.fuzz.graphs import changed_graph
from tests.fuzz.mutations import damaged_bytes
from tests.fuzz.structures import COUNTS, DEPTHS, MOST_CHARACTERS, TEXTS, mutated

Chance = random.Random
Change = Callable[[bytes, Chance, Sequence[str]], bytes]


def changed(name: str, data: bytes, chance: Chance, names: Sequence[str] = ()) -> bytes:
    """The bytes of a file called `name`, changed in a way that its format makes likely to be read on."""
    if chance.random() < 0.15 and data:
        return damaged_bytes(data, chance)
    suffix = name.rpartition(".")[2].lower()
    return _FORMATS.get(suffix, _lines)(data, chance, names)


def _json(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    return mutated(json.loads(data), chance, names).encode("utf-8", "surrogatepass")


def _jsonl(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    lines = data.splitlines()
    if not lines or chance.random() < 0.3:
        return _lines(data, chance, names)
    place = chance.randrange(len(lines))
    lines[place] = mutated(json.loads(lines[place]), chance, names).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + chance.choice((b"\n", b"", b"\n\n", b"\r\n"))


def _toml(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    """The values of a TOML file changed, as far as TOML can say it; its lines otherwise."""
    kind = chance.random()
    if kind < 0.25:
        return _lines(data, chance, names)
    depth = chance.choice(DEPTHS)
    if kind < 0.35:
        return data + b"\nx" + b".x" * depth + b" = 1\n"
    if kind < 0.45:
        return data + b"\nx = " + b"[" * depth + b"]" * depth + b"\n"
    if kind < 0.5:
        return b"[a" + b".a" * depth + b"]\nx = 1\n" + data
    try:
        return tomli_w.dumps(json.loads(mutated(tomllib.loads(data.decode()), chance, names))).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return _lines(data, chance, names)


def _framed(begin: int, length_bytes: int, align: int) -> Change:
    """A format of a JSON header, after its length in little endian at `begin`, and numbers after it."""
    head = begin + length_bytes

    def change(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
        length = int.from_bytes(data[begin:head], "little")
        text, numbers = data[head : head + length], data[head + length :]
        text = mutated(json.loads(text), chance, names).encode("utf-8", "surrogatepass")
        text += b" " * (-(head + len(text)) % align)
        if chance.random() < 0.1:
            numbers = chance.choice(
                (numbers[:-1], numbers + b"\0" * 4, b"", numbers * 2, damaged_bytes(numbers, chance))
            )
        told = min(len(text), (1 << 8 * length_bytes) - 1)
        return data[:begin] + told.to_bytes(length_bytes, "little") + text + numbers

    return change


def _lines(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    """A text with lines repeated, doubled, moved, joined; what is in a line replaced by what parsers stumble over."""
    lines = data.splitlines(keepends=True) or [b""]
    place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    line = lines[place]
    match chance.randrange(7):
        case 0:
            lines[place] = line * min(chance.choice(COUNTS), MOST_CHARACTERS // (len(line) + 1) + 1)
        case 1:
            lines[place], lines[other] = lines[other], line
        case 2:
            lines.insert(place, lines[other])
        case 3:
            del lines[place]
        case 4:
            text = chance.choice([*TEXTS, *names]).encode("utf-8", "surrogatepass")
            at = chance.randrange(len(line) + 1)
            lines[place] = line[:at] + text + line[at:]
        case 5:
            mark = chance.choice(
                (b'"', b"'", b",", b"\t", b"\r", b"\xef\xbb\xbf", b"{", b"[", b"\xff", b"\0", b"#", b"=")
            )
            at = chance.randrange(len(line) + 1)
            lines[place] = line[:at] + mark * chance.choice(COUNTS) + line[at:]
        case _:
            lines[place] = line.rstrip(b"\r\n") + lines[other]
    return b"".join(lines)[:MOST_CHARACTERS]


_PIECES = (
    "{% for a in messages %}{% endfor %}", "{% if messages %}{% endif %}", "{{ messages | tojson }}",
    "{{ messages | string }}",
    "{% set n = namespace(a=[]) %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a == [n.a, n.a] }}",
    "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}", "{{ 'a' * 10 ** 9 }}", "{{ 9 ** 9 ** 9 }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{{ raise_exception('no') }}", "{% generation %}a{% endgeneration %}",
    "{{ messages[0]['content'] | replace('', 'aaaaaaaaaa') | replace('a', 'aaaaaaaaaa') }}",
    "{{ range(10**12) | list }}",
    "{{ messages | map(attribute='content') | join }}", "{{ cycler }}", "{{ lipsum(99999) }}", "{% raw %}", "{#",
    "{%", "{{",
    "{{ (1, 2) | sort | groupby(0) }}", "{{ strftime_now('%Y' * 9999) }}", "{{ messages[-1:0:-1] }}", "{{ none.x.y }}",
    "{{ '%099999999d' % 1 }}", "{{ '{:>999999999}'.format(1) }}", "{{ messages | batch(2) | list | pprint }}",
)  # fmt: skip


def _template(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    """A chat template with pieces put in, blocks nested in one another."""
    if chance.random() < 0.3:
        return _lines(data, chance, names)
    text, piece = data.decode(), chance.choice(_PIECES)
    at = chance.choice([0, len(text), *(i for i, letter in enumerate(text) if letter == "{")])
    depth = chance.choice((1, 1, 2, 20, 400))
    block = chance.choice(
        (("", ""), ("{% if 1 %}", "{% endif %}"), ("{% for _ in 'ab' %}", "{% endfor %}"), ("{{ (", ") }}"))
    )
    return (text[:at] + block[0] * depth + piece + block[1] * depth + text[at:]).encode()


def _compressed(compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]) -> Change:
    def change(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
        inner = _jsonl(decompress(data), chance, names)
        kind = chance.random()
        if kind < 0.1:  # what it holds is far more than it takes
            return compress(inner + b"\n" * (64 << 20))
        if kind < 0.2:
            return compress(inner) * 2
        return compress(compress(inner)) if kind < 0.3 else compress(inner)

    return change


def _damaged(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    return damaged_bytes(data, chance)


_FORMATS: Mapping[str, Change] = {
    "json": _json,
    "jsonl": _jsonl,
    "toml": _toml,
    "safetensors": _framed(0, 8, 64),
    "update": _framed(5, 4, 64),
    "jinja": _template,
    "gz": _compressed(gzip.compress, gzip.decompress),
    "bz2": _compressed(bz2.compress, bz2.decompress),
    "xz": _compressed(lzma.compress, lzma.decompress),
    "onnx": changed_graph,
    "onnx_adapter": _damaged,
}
