"""A tokenizer.json of a stranger: what the library would abort, panic or grow without end at is refused from its text."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import fedlora
import pytest
from fedlora.base.packing import make_pack
from fedlora.base.regex_cost import check_regex
from fedlora.base.tokenizer import library_errors, plain_tokenizer
from fedlora.base.tokenizer_file import MAX_GROWTH, check_tokenizer, check_tokenizer_text
from fedlora.errors import CheckpointError, PackError
from fedlora_client.data.tokenizer import encoded
from fedlora_serve.text.tokenizer import tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.tiny.checkpoints import llama_config, random_weights, tiny_quantization, write_checkpoint
from tests.tiny.tokenizer_kinds import KINDS, write_tokenizer

MODEL: dict[str, Any] = {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}
_WORD = r"[^\r\n\p{L}\p{N}]?"
END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN_PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORD + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + END,
    "Qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORD + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + END,
    "o200k": _WORD + r"[\p{Lu}\p{Lo}\p{M}]*[\p{Ll}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}]+[\r\n/]*" + END,
    "cl100k": r"'(?i:[sdmt]|ll)|" + _WORD + r"+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;@\[\\\]^_`{|}~][A-Z]+|[^\r\n\p{L}\p{P}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + END,
    "Bloom": r" ?[^(\s|[.,!?…。、।،])]+",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "thousands": r"\d{1,3}(?=(?:\d{3})*\b)",
    "Kimi": r"[\p{Han}]+|[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+",
    "blanks": r" {2,}",
    "nothing": r"",
}  # fmt: skip
HOSTILE_PATTERNS = (
    r"(a+)+$", r"(?:a|a)*c", r"(x+x+)+y", r"(a*)*", r"(a?){30}a{30}", "a?" * 20 + "a" * 20,
    "a*a*b", "a*xa*b", r"\w*\d+\b", r"a*(?=a*b)", "a*(?:a*b)?c", "(?:a*)(?:a*)b", "a{0,99}a*b", "(?:a*|b)a*b",
    r"(?:(?:a{1000}){1000}){1000}", r"(a|b)\1", r"(?<x>a|b\g<x>c)", r"a**", r"a{5}{5}", r"(?~a)", r"((a|ab)(c|bcd)(d*))*",
    r"(?=(a+)+)b", r"(", r")", r"[", r"a\ "[:-1], r"(?:a?b?)+", r"(.*)*", r"(?:[a-z]+\s?)+$", r"(a{1,50}){1,50}", r"\X+",
    r"a{100001}", "(" * 99 + "a" + ")" * 99, "a" * 9000,
)  # fmt: skip


def described(**parts: Any) -> dict[str, Any]:
    return {"version": "1.0", "added_tokens": [], "model": MODEL, **parts}


def replace(content: str, pattern: dict[str, str] | None = None) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(content: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def in_sequence(members: str, steps: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", members: steps}


_LOOP: dict[str, Any] = {"type": "NFC"}
for _ in range(7):
    _LOOP = in_sequence("normalizers", [_LOOP, _LOOP])
SIGN = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}

HOSTILE = {
    "a size of the trie beyond the file": (
        described(normalizer=charsmap(b"\xff\xff\xff\xff\0\0\0\0")), "4294967295 bytes"
    ),
    "a map without a size": (described(normalizer=charsmap(b"\0\0\0")), "its trie has 0 bytes"),
    "a map that is no base64": (
        described(normalizer={"type": "Precompiled", "precompiled_charsmap": "*"}), "not base64"
    ),
    "a map with a text beyond the bound": (
        described(normalizer=charsmap(struct.pack("<II", 4, 0) + b"a" * 999)), "999 times its size"
    ),
    "letters that become ten each, often": (
        described(normalizer=in_sequence("normalizers", [replace("a" * 10)] * 7)), "10000000 times its size"
    ),
    "... in two parts": (
        described(
            normalizer=replace("a" * 100), pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}
        ), "400 times its size",
    ),
    "... in the decoder": (described(decoder=in_sequence("decoders", [replace("a" * 10)] * 3)), "decoder: .*1000 times"),
    "a text before each text, often": (
        described(normalizer=in_sequence("normalizers", [{"type": "Prepend", "prepend": "a" * 60}] * 3)), "times its size"
    ),
    "a sign before each letter, often": (
        described(pre_tokenizer=in_sequence("pretokenizers", [{"type": "FixedLength", "length": 1}, SIGN] * 10)),
        "1024 times its size",
    ),
    "a text many times": (
        described(post_processor=TEMPLATE | {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 300}), "300 times"
    ),
    "many steps": (described(normalizer=_LOOP), "at most (64 steps|8)|8 deep"),
    "words of no length": (described(pre_tokenizer={"type": "FixedLength", "length": 0}), "length: expected 1 or more"),
    "a part that is no kind": (described(decoder={"type": "Shell"}), "unknown kind 'Shell'; the kinds are BPEDecoder"),
    "a model that is no kind": (described(model={"type": "Shell"}), "model: unknown kind 'Shell'"),
    "a part without a kind": (described(normalizer=[1]), "normalizer: expected an object with a type, got list"),
    "a regular expression": (
        described(pre_tokenizer=split("(a+)+$")),
        r"pre_tokenizer: the regular expression '\(a\+\)\+\$' repeats a group",
    ),
    "one within a normalizer": (described(normalizer=replace("", {"Regex": "(a|b)*"})), "repeats a group"),
    "many letters that are taken off": (
        described(decoder={"type": "Strip", "content": "a", "start": 10**9, "stop": 0}), "start: expected at most 1024"
    ),
    "long words": (
        described(model={"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**6}), "at most 1024, got 1000000"
    ),
    "long pieces": (described(model={"type": "Unigram", "vocab": [["a" * 5000, 0.0]]}), "1024 characters at most"),
    "no model": ({"version": "1.0"}, "it has no object `model`"),
}  # fmt: skip


def opened(directory: Path, value: object) -> Tokenizer:
    (directory / "tokenizer.json").write_text(json.dumps(value))
    return plain_tokenizer(Tokenizer.from_buffer, directory)


@pytest.mark.parametrize(("value", "reason"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_tokenizer_that_would_harm_is_refused_before_the_library_reads_it(
    tmp_path: Path, value: object, reason: str
) -> None:
    with pytest.raises(PackError, match=rf"tokenizer\.json: not a tokenizer: .*({reason})"):
        opened(tmp_path, value)


@pytest.mark.parametrize("name", ["a size of the trie beyond the file", "letters that become ten each, often"])
def test_pack_refuses_it_too(tmp_path: Path, name: str) -> None:
    config = llama_config()
    source = write_checkpoint(tmp_path / "source", config=config, weights=random_weights(config))
    value, reason = HOSTILE[name]
    (source / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{reason}.*; take the model's own tokenizer\.json"):
        make_pack(str(source), tmp_path / "pack", tiny_quantization())
    assert not (tmp_path / "pack").exists()


def test_json_that_says_a_thing_twice_or_without_end_is_refused() -> None:
    text = json.dumps(described())
    for hostile, reason in (
        (text[:-1] + ', "model": {}}', "twice"), ("[" * 5_000_000, "lists and objects"), ("[" * 100_000, "deep"),
        ("\ud800".encode("utf-8", "surrogatepass"), "UTF-8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            check_tokenizer_text(hostile if isinstance(hostile, bytes) else hostile.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_every_kind_of_model_are_taken(tmp_path: Path, kind: str) -> None:
    write_tokenizer(kind, tmp_path)
    check_tokenizer_text((tmp_path / "tokenizer.json").read_bytes())


def test_the_tokenizer_that_ships_with_fedlora_is_taken() -> None:
    check_tokenizer_text((Path(fedlora.__file__).parent / "nano" / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("pattern", KNOWN_PATTERNS.values(), ids=list(KNOWN_PATTERNS))
def test_the_regular_expressions_of_models_are_taken(tmp_path: Path, pattern: str) -> None:
    assert opened(tmp_path, described(pre_tokenizer=split(pattern))).encode("a  a\n 12 a").ids


@pytest.mark.parametrize("pattern", HOSTILE_PATTERNS)
def test_a_regular_expression_that_may_search_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        check_regex(pattern)


@given(st.text("ab()[]{}|*+?^$\\.,123:=!<>-dpL", max_size=30))
def test_whatever_stands_in_a_regular_expression_is_taken_or_refused(source: str) -> None:
    try:
        check_regex(source)
    except ValueError:
        return


_NORMALIZERS = st.one_of(
    st.builds(
        replace, st.text("ab ", max_size=12), st.sampled_from([{"String": "a"}, {"String": "ab"}, {"String": ""}])
    ),
    st.builds(
        replace, st.text("ab ", max_size=12), st.sampled_from([{"Regex": "a"}, {"Regex": "a*"}, {"Regex": "[ab]{2}"}])
    ),
    st.builds(lambda text: {"type": "Prepend", "prepend": text}, st.text("ab", min_size=1, max_size=12)),
    st.sampled_from([{"type": "ByteLevel"}, {"type": "Lowercase"}, {"type": "NFKD"}]),
)
_PRE_TOKENIZERS = st.sampled_from(
    [
        {"type": "FixedLength", "length": 1}, SIGN,
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, {"type": "Whitespace"},
    ]
)  # fmt: skip


@settings(deadline=None)
@given(
    normalizers=st.lists(_NORMALIZERS, max_size=6), pre_tokenizers=st.lists(_PRE_TOKENIZERS, max_size=6),
    text=st.text("ab é", min_size=1, max_size=20),
)  # fmt: skip
def test_what_a_text_grows_to_is_bounded_wherever_the_check_passes(
    normalizers: list[Any], pre_tokenizers: list[Any], text: str
) -> None:
    value = described(
        normalizer=in_sequence("normalizers", normalizers), pre_tokenizer=in_sequence("pretokenizers", pre_tokenizers)
    )
    try:
        check_tokenizer(value)
    except ValueError:
        return
    tokenizer = Tokenizer.from_str(json.dumps(value))
    try:
        with library_errors():
            pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    except PackError as error:  # the library has errors of its own
        assert "the library tokenizers fails" in str(error)
        return
    assert sum(len(piece) for piece, _ in pieces) <= MAX_GROWTH * (len(text) + 1)


FAILING = {
    "there is no token for what is unknown": (described(model=MODEL | {"unk_token": "!"}), "b", "Missing .UNK. token"),
    "a map whose trie is none": (
        described(normalizer=charsmap(struct.pack("<II", 4, 0xFFFFFFFF) + b"a\0")), "abc\u00e9", "tokenizers fails"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "text", "reason"), FAILING.values(), ids=list(FAILING))
def test_what_the_library_raises_at_a_text_is_one_error(tmp_path: Path, value: object, text: str, reason: str) -> None:
    message = rf"^the base's tokenizer fails at a text: .*{reason}.*; pack the model with its own tokenizer\.json$"
    tokenizer = opened(tmp_path, value)
    with pytest.raises(PackError, match=message):
        tokens_of(tokenizer, text, add_special_tokens=False)
    with pytest.raises(PackError, match=message):
        encoded(tokenizer, text)


def test_an_interrupt_is_none_of_the_librarys_errors() -> None:
    with pytest.raises(KeyboardInterrupt), library_errors():
        raise KeyboardInterrupt
