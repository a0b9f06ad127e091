"""Patterns of module names, with Python's `re` and PEFT's own lookup as the oracles."""

from __future__ import annotations

import re
import warnings

import pytest
from fedlora.errors import ConfigError
from fedlora.peft.name_pattern import NamePattern
from fedlora.peft.patterns import by_module, untargeted
from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

NAMES = [
    f"{prefix}.{layer}.{leaf}"
    for prefix in ("model.layers", "bert.encoder.layer", "transformer.h")
    for layer in (0, 1, 7, 11, 23)
    for leaf in ("self_attn.q_proj", "mlp.up_proj", "attention.self.query", "mlp.experts.1.down_proj")
] + ["lm_head", "model.norm", "q_proj"]
PATTERNS = [
    "q_proj", r"model\.layers\.1\.mlp\.up_proj", "model.layers.1.mlp.up_proj", "^model.layers.0.self_attn.q_proj$",
    r"layers\.1\..*down_proj", r"layers\.(0|7)\..*", r"layers\.[0-7]\.self_attn\.(?:q|k)_proj", r".*\.\d+\.mlp\..+",
    r"\d{2}\.mlp.up_proj", r"[^.]+", r"(a+)+b", r"(.*)*", r".*?proj", "lm_(head)?", r"[\w.]+query",
    r"layers\.\d{1,}\.mlp.*",    "", "h.1|h.7", "()", "q_proj|", "[]a]", r"[a\-z]_proj", r"(|model\.)norm", r"x{0}q_proj",
]  # fmt: skip


def fits(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_fits_the_names_that_peft_finds_with_it(pattern: str) -> None:
    compiled = NamePattern(pattern)
    for name in NAMES:
        assert compiled.matches(name) == fits(pattern, name), name
        assert (name in by_module({pattern: 1}, [name])) == (
            get_pattern_key([pattern], name) == pattern or fits(pattern, name)
        )


def test_the_first_pattern_that_fits_counts_as_it_does_to_peft() -> None:
    patterns = {
        "layers.0.mlp.*": 1, "up_proj": 2, r"model\.layers\.7\.self_attn\.q_proj": 3, "(q_proj|query)": 4, "x": 5, ".*": 6,
    }  # fmt: skip
    assert by_module(patterns, NAMES) == {name: patterns[get_pattern_key(list(patterns), name)] for name in NAMES}


@pytest.mark.parametrize("pattern", ["a{99}", "(" * 40 + "a" + ")" * 40, "(?P<leaf>q|k)_proj", r"\\Q", r"\W[^\d]\S"])
def test_what_is_long_or_rare_is_matched_as_python_matches_it(pattern: str) -> None:
    compiled = NamePattern(pattern)
    for name in ("a", "a" * 98, "a" * 99, "x." + "a" * 99, "x.q_proj", "\\Q", ".ab"):
        assert compiled.matches(name) == fits(pattern, name), name


PIECES = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\d", "1", "_", "(a|b)", "(?:ab)", "(a*)", "(|b.)"]
)
QUANTIFIERS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])


@given(
    st.lists(st.tuples(PIECES, QUANTIFIERS), max_size=5).map(lambda parts: "".join(a + b for a, b in parts)),
    st.text("ab1_.", max_size=9),
)
@example("(a*)*b", "aaaaaaaaa")
def test_any_pattern_and_name_are_matched_as_python_matches_them(pattern: str, name: str) -> None:
    assert NamePattern(pattern).matches(name) == fits(pattern, name)


@given(st.text(r"ab.*+?{}1,()[]^$|\d-", max_size=12), st.text("ab1.", max_size=8))
def test_what_is_understood_is_a_pattern_to_python_too(pattern: str, name: str) -> None:
    try:
        compiled = NamePattern(pattern)
    except ConfigError:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a bracket in a class
            expected = fits(pattern, name)
    except re.error:
        return  # stricter than ours, such as a class from b to a, which fits nothing
    assert compiled.matches(name) == expected


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)", "lookaround"), ("(?i)a", "flags"), ("(?<n>a)", "lookaround"), (r"(a)\1", r"\\1 is not known"),
        (r"\Qa\E", r"\\Q is not known"), ("[[:alpha:]]", r"\[: is not known"), ("a{,3}", r"\{,3\} is not known"),
        ("a(", r"missing \)"), ("a)", r"unexpected \)"), ("a)|(b", r"unexpected \)"), ("*a", "no argument for repetition"),
        ("[a", r"missing \]"), ("\\", "trailing"), ("a**", "bad repetition operator"), ("a{1}+", "bad repetition operator"),
        ("a{3,2}", "invalid repetition size"), ("a{1001}", "invalid repetition size"), ("(a{99}){99}", "repetition size"),
        ("a" * 513, "longer than 512"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        NamePattern(pattern)


@pytest.mark.parametrize("pattern", ["(?P<n>a)(?P<n>b)", "(?P<1>a)", r"[\d-z]"])
def test_what_python_does_not_compile_is_refused_as_it_is_by_peft(pattern: str) -> None:
    with pytest.raises(re.error):
        re.compile(pattern)
    with pytest.raises(ConfigError, match="is not understood"):
        NamePattern(pattern)


@pytest.mark.parametrize("half", ["\ud800", "q_proj|\udfff", "[\ud800]"])
def test_half_a_surrogate_pair_is_refused_in_a_pattern_and_in_a_name(half: str) -> None:
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        NamePattern(half)
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        NamePattern(".*").matches(half)


def test_a_pattern_that_takes_too_long_is_refused_after_a_bounded_number_of_steps() -> None:
    nested = NamePattern("((((.*)*)*)*)*" * 8 + "x")  # Python's own matcher would not end
    assert not any(nested.matches("a." * 200 + str(number)) for number in range(1_000))
    for pattern in ("(a|.){30}" * 10 + "b", "(a?){500}(a){500}"):  # the slowest known: many parts, none left out
        slow, begun = NamePattern(pattern), 0
        with pytest.raises(ConfigError, match="too many steps"):
            for begun in range(10_000):  # noqa: B007
                slow.matches("a." * 200)
        assert 10 < begun < 2_000


def test_a_pattern_that_would_take_much_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="pattern too large"):
        NamePattern("((.?.?.?.?.?.?.?.?.?.?.?.?){99}){10}")


def test_nothing_is_printed_about_a_pattern_that_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        NamePattern("a(")
    NamePattern("(a?){500}(a){500}").matches("a." * 200)
    assert capfd.readouterr() == ("", "")


def test_the_expressions_of_an_adapter_are_few() -> None:
    with pytest.raises(ConfigError, match="17 expressions; at most 16"):
        by_module({f"a{number}*": 1 for number in range(17)}, ["a"])


CONFIGS: list[dict[str, object]] = [
    {"target_modules": ["q_proj", "up_proj"]},
    {"target_modules": ["mlp.up_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 11]},
    {"target_modules": ["q_proj", "query", "down_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj", "query"], "layers_to_transform": [0], "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "query"], "layers_to_transform": [0, 7], "layers_pattern": ["h", "layer"]},
    {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["experts.1.down_proj", "lm_head"]},
    {"target_modules": ["model.layers.1.mlp.up_proj"]},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_modules_without_a_target_are_those_that_peft_would_leave_alone(config: dict[str, object]) -> None:
    theirs = LoraConfig(**config)
    # The configuration as its file has it: lists, where PEFT holds sets.
    expected = [name for name in NAMES if not check_target_module_exists(theirs, name)]
    assert untargeted(config, NAMES) == expected


@pytest.mark.parametrize("key", ["-" * 60 + "!", "\\-" * 60 + "!", "a-" * 60 + "!", "-" * 200_000])
def test_a_name_takes_no_time_whatever_its_letters_are(key: str) -> None:
    """Hyphens that could be read in two ways took twice as long with each: forty of them were for ever."""
    try:
        assert by_module({key: 1}, ["model.layers.0.self_attn.q_proj"]) == {}
    except ConfigError:
        assert "!" in key


def test_a_pattern_of_very_many_names_is_refused_before_they_are_compiled() -> None:
    with pytest.raises(ConfigError, match="a pattern has 50000 names; at most 4096 are read"):
        by_module({f"q_proj{number}": 1 for number in range(50_000)}, ["q_proj"])
