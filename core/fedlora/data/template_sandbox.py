"""Jinja as chat templates expect it, in a sandbox: a base's template is somebody else's program.

A template reaches no attribute outside Jinja's own sandbox, changes no value that it is given, takes a bounded number of
steps and makes no text, list or number beyond a bound. What it writes depends on what it is given alone: no chance, and no
clock but the date that it is given. What a single step may cost, and all of them together, is bounded around it: it runs
in a process of its own (template_process.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from jinja2 import Template, TemplateRuntimeError, nodes
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.ext import Extension
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 1 << 22  # of what a template writes, and of any text on the way there
MAX_STEPS = 1_000_000  # passes of loops and calls

# Templates may ask for today's date. The same data must give the same tokens on every day.
FIXED_DAY = date(2024, 7, 26)
_MAX_DATE_FORMAT = 256  # characters: a format's fields can be 256 times as wide as it is long
_MAX_BITS = 1 << 12  # of a number
# What chat templates do without: it grows by a number that it is given, or is left to chance.
_NO_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"})
_NO_FILTERS = ("batch", "center", "format", "pprint", "random", "round", "slice", "urlize", "wordwrap", "xmlattr")


class RefusedError(TemplateRuntimeError):
    """The template itself refuses the messages, with `raise_exception`."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which rendering ends. One thread at a time: it counts the steps of one rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
        self.marks = ("", "")  # what stands before and after a {% generation %} block
        self._steps, self._today = 0, FIXED_DAY
        self.filters |= {"bounded_loop": self._loop, "bounded": _bounded}
        self.filters |= {"indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson}
        for name in _NO_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "strftime_now": self._strftime}

    def compiled(self, source: str, filename: str) -> Template:
        """The template of `source`. Raises jinja2.TemplateError."""
        tree = _Bounds().visit(self.parse(source, filename=filename))
        return Template.from_code(self, self.compile(tree, filename=filename), self.make_globals(None))

    def rendered(
        self, template: Template, values: Mapping[str, Any], marks: tuple[str, str] = ("", ""), today: date = FIXED_DAY
    ) -> str:
        """What the template writes, with `marks` around each {% generation %} block. Raises whatever goes wrong in it."""
        self.marks, self._steps, self._today = marks, 0, today
        parts: list[str] = []
        size = 0
        for part in template.generate(**values):
            size += len(part)
            _check_size(size)
            parts.append(part)
        return "".join(parts)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step(1)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name in ("join", "replace"):
            obj = partial(_replace, owner) if name == "replace" else partial(_join, d=owner)
        return _bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and (sized := [value for value in (left, right) if isinstance(value, Collection)]):
            count = right if sized[0] is left else left
            _check_size(len(sized[0]) * (count if isinstance(count, int) else 1))
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"the operator {operator} is not for chat templates")
        return _bounded(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _NO_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # then `format` is an attribute like others, and not a safe one

    def _strftime(self, format: str) -> str:  # noqa: A002  (as templates may name it)
        if len(format) > _MAX_DATE_FORMAT:
            raise SecurityError(f"a format of a date is longer than {_MAX_DATE_FORMAT} characters")
        return self._today.strftime(format)

    def _loop(self, iterable: Iterable[Any]) -> Collection[Any]:
        """The iterable itself where its length is known, else its items, after counting them as steps."""
        left = MAX_STEPS - self._steps
        items = iterable if isinstance(iterable, Collection) else list(islice(iterable, left + 1))
        self._step(len(items))
        return items

    def _step(self, count: int) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: what stands there is the assistant's own text."""

    tags = {"generation"}  # noqa: RUF012  (as the base class has it)
    environment: BoundedEnvironment

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        before, after = self.environment.marks
        return before + caller() + after


class _Bounds(NodeTransformer):
    """Every loop counts its passes; every text that is put together is measured. Its names are those of Jinja's nodes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TemplateAssertionError("a recursive loop is not for chat templates", node.lineno)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "bounded_loop")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "bounded")

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "bounded", node.lineno)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "bounded")


def _filtered(node: nodes.Node | None, name: str, line: int | None = None) -> nodes.Filter:
    """The filter `name` of a node's value; of None: of a block's text."""
    line = node.lineno if node is not None else line
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def _check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise SecurityError(f"its text is longer than {MAX_CHARACTERS} characters")


def _bounded(value: Any) -> Any:
    """The value itself, where it is no larger than anything may be."""
    if isinstance(value, str | list | tuple):
        _check_size(len(value))
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise SecurityError(f"a number has more than {_MAX_BITS} bits")
    return value


def _refuse(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _indent(s: object, width: int = 4, first: bool = False, blank: bool = False) -> str:
    text = str(s)
    _check_size(len(text) + width * (text.count("\n") + 1))
    return do_indent(text, width, first, blank)


def _join(value: Iterable[object], d: object = "") -> str:
    pieces = [str(piece) for piece in value]
    separator = str(d)
    _check_size(sum(map(len, pieces)) + len(separator) * len(pieces))
    return separator.join(pieces)


def _replace(s: object, old: object, new: object, count: int | None = None) -> str:
    text, before, after = str(s), str(old), str(new)
    _check_size(len(text) + text.count(before) * len(after))
    return text.replace(before, after, -1 if count is None else count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter writes it for HTML."""
    _check_size((indent or 0) << 10)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
