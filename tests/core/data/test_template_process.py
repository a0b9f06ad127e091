"""Whatever a chat template does, it ends, and the process that asked goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fedlora.data import template_process
from fedlora.data.chat_template import ChatTemplate
from fedlora.data.examples import ChatMessage
from fedlora.data.template_sandbox import MAX_CHARACTERS
from fedlora.errors import PackError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HI = (ChatMessage("user", "hi"),)
CPU, MEMORY = "it takes more than 0.3 s of processor time", "it takes more than 96 MB of memory"
NESTS = (
    "{%% set ns = namespace(a=[1], b=[1], c=(1, 2), d=(1, 2)) %%}{%% for i in range(60) %%}{%% set ns.a = [ns.a, ns.a] %%}"
    "{%% set ns.b = [ns.b, ns.b] %%}{%% set ns.c = (ns.c, ns.c) %%}{%% set ns.d = (ns.d, ns.d) %%}{%% endfor %%}%s"
)
HOSTILE = {
    "equal": (NESTS % "{% if ns.a == ns.b %}x{% endif %}", CPU),
    "in": (NESTS % "{% if ns.a in [ns.b] %}x{% endif %}", CPU),
    "less": (NESTS % "{% if ns.c < ns.d %}x{% endif %}", CPU),
    "hash": (NESTS % "{% if {ns.c: 1} %}x{% endif %}", CPU),
    "unique": (NESTS % "{{ [ns.c, ns.d] | unique | list | length }}", CPU),
    "max": (NESTS % "{{ [ns.c, ns.d] | max }}", CPU),
    "output": (NESTS % "{{ ns.a }}", f"{CPU}|{MEMORY}"),
    "string": (NESTS % "{{ ns.a | string | length }}", f"{CPU}|{MEMORY}"),
    "tojson": (NESTS % "{{ ns.a | tojson | length }}", f"{CPU}|{MEMORY}"),
    "join": (NESTS % "{{ ns.a | join }}", f"{CPU}|{MEMORY}"),
    "many-texts": (
        "{% set x = 'a' * 4000000 %}{% set ns = namespace(l=[]) %}"
        "{% for i in range(800) %}{% set ns.l = ns.l + [x ~ i] %}{% endfor %}",
        MEMORY,
    ),
    "list-of-letters": ("{% set x = ('\u00e9\u4e2d' * 2000000) | list %}{{ x | length }}", f"{CPU}|{MEMORY}"),
    "sort": ("{% set x = ('b a ' * 400000).split() %}{% for i in range(99) %}{{ (x | sort)[0] }}{% endfor %}", CPU),
    "upper": (
        "{% set x = 'a' * 4000000 %}{% for i in range(9999) %}{% if x.upper() == 1 %}{% endif %}{% endfor %}",
        CPU,
    ),
    "number": ("{{ (5).to_bytes(1000000000, 'big') | length }}", MEMORY),
}


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes with little time and memory."""
    template_process._end_all()
    monkeypatch.setattr(template_process, "MAX_CPU_S", 0.3)
    monkeypatch.setattr(template_process, "MAX_MEMORY_BYTES", 96 << 20)
    yield
    template_process._end_all()


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, "chat_template.jinja", {})


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize(("source", "reason"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_template_that_costs_too_much_ends_alone(source: str, reason: str) -> None:
    with pytest.raises(
        PackError, match=rf"^chat_template\.jinja: .*cannot write the messages of here: ({reason}); give"
    ):
        template_of(source).text(HI, "here")
    assert template_of("{{ messages[0].content }}").text(HI, "here") == "hi"


def test_the_limits_hold_what_a_template_makes_at_most() -> None:
    written = template_of(f"{{{{ '\U0001f600' * {MAX_CHARACTERS} }}}}").text(HI, "here")
    assert len(written) == MAX_CHARACTERS


# Expressions over x (a list), y (a tuple) and t (a text), each of them what was made before.
_PIECES = (
    "[x, x]", "x + x", "x * 2", "x[::-1]", "x | list", "x | sort", "x | unique | list", "x | map('string') | list",
    "[y, x]", "x | reverse | list", "[t, t]", "(t ~ t).split('a')", "t | list", "[x == x, x in [x], x | string | length]",
)  # fmt: skip
_TUPLES = ("(y, y)", "(x, y)", "(t, t)", "({y: y},)", "(y == y, y < (y, y))")
_TEXTS = (
    "t ~ t", "t + t", "t * 3", "t | replace('a', 'aa')", "t | upper", "t | escape", "t | tojson", "x | string",
    "y | tojson", "x | join(t)", "t | trim | title", "t | indent(4)", "t | urlencode", "t[1:]", "x | tojson(indent=4)",
    "t | wordcount ~ t", "t | striptags", "t.join(t)", "t | truncate(99)", "t.encode() | string", "x | groupby(0) | string",
)  # fmt: skip


@pytest.mark.usefixtures("tight")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("x"), st.sampled_from(_PIECES)),
            st.tuples(st.just("y"), st.sampled_from(_TUPLES)),
            st.tuples(st.just("t"), st.sampled_from(_TEXTS)),
        ),
        min_size=1,
        max_size=4,
    ),
    times=st.sampled_from((1, 7, 60, 5000)),
    macro=st.booleans(),
)
def test_every_template_writes_a_bounded_text_or_is_refused(
    steps: list[tuple[str, str]], times: int, macro: bool
) -> None:
    body = "".join(f"{{% set {name} = {made} %}}{{% set ns.{name} = {name} %}}" for name, made in steps)
    taken = "{% set x = ns.x %}{% set y = ns.y %}{% set t = ns.t %}"
    work = f"{{% for i in range({times}) %}}{taken}{body}{{% endfor %}}{{{{ ns.x }}}}{{{{ ns.y }}}}{{{{ ns.t }}}}"
    if macro:
        work = f"{{% macro m() %}}{work}{{% endmacro %}}{{{{ m() ~ m() }}}}"
    source = "{% set ns = namespace(x=['b', 'a'], y=(1, 2), t='<a a>') %}" + work
    try:
        assert len(template_of(source).text(HI, "here")) <= MAX_CHARACTERS
    except PackError as error:
        assert str(error).startswith("chat_template.jinja: ")


def test_a_process_that_was_killed_between_two_chats_is_replaced() -> None:
    template = template_of("{{ messages[0].content }}")
    assert template.text(HI, "here") == "hi"
    for child in template_process._idle:
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait()
    assert template.text(HI, "here") == "hi"


def test_templates_of_several_threads_are_written_at_once() -> None:
    def write(number: int) -> str:
        return template_of("{{ messages[0].content }}" + str(number)).text(HI, "here")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(40))) == [f"hi{number}" for number in range(40)]
    assert len(template_process._idle) <= 2


def test_a_fork_has_processes_of_its_own() -> None:
    code = (
        "import os\nfrom fedlora.data.chat_template import ChatTemplate\nfrom fedlora.data.examples import ChatMessage\n"
        "t = ChatTemplate('{{ messages[0].content }}', 't', {})\n"
        "says = lambda text: t.text([ChatMessage('user', text)], 'here')\n"
        "says('a')\nchild = os.fork()\nmine = [says(('c' if child == 0 else 'p') * n) for n in range(1, 200)]\n"
        "assert mine == [('c' if child == 0 else 'p') * n for n in range(1, 200)]\n"
        "child == 0 or print(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_values_that_are_nested_too_deep_are_refused() -> None:
    deep: object = []
    for _ in range(20000):
        deep = [deep]
    with pytest.raises(PackError, match="too deep"):
        template_of("a").text(HI, "here", variables={"deep": deep})
