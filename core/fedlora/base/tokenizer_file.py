"""What a tokenizer.json tells the library `tokenizers` to do, checked before the library reads it.

The library is written in another language and trusts its files: a few bytes of one make it abort the whole process, or one
letter become ten billion. So each part must be of a kind that is known, its numbers in range, and what a text can grow to
and how long a regular expression can search are bounded from the description alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fedlora.base.regex_cost import check_regex

_MAX_CONTAINERS = 1 << 21  # a list of merges has one for each
MAX_GROWTH = 256  # characters that one character of a text may become, of all steps together
_MAX_STEPS, _MAX_DEPTH = 64, 8  # of one part, such as the normalizer
_MAX_ADDED_CHARACTERS, _MAX_TEMPLATE_TOKENS = 1 << 22, 1024
_MAX_WORD = 1 << 10  # characters of a word that WordPiece tries to divide: it takes the square of that
_MAX_PIECE = 1 << 10  # characters of a piece of a Unigram model, which is looked for at each place of a text
_MAX_STRIPPED = 1 << 10

# {part: (where a sequence of that part has its members, its kinds)}
_PARTS: Mapping[str, tuple[str, frozenset[str]]] = {
    "normalizer": (
        "normalizers",
        frozenset(
            {
                "BertNormalizer",
                "Strip",
                "StripAccents",
                "NFC",
                "NFD",
                "NFKC",
                "NFKD",
                "Lowercase",
                "Nmt",
                "Precompiled",
                "Replace",
                "Prepend",
                "ByteLevel",
            }
        ),
    ),
    "pre_tokenizer": (
        "pretokenizers",
        frozenset(
            {
                "BertPreTokenizer",
                "ByteLevel",
                "CharDelimiterSplit",
                "Metaspace",
                "Whitespace",
                "WhitespaceSplit",
                "Split",
                "Punctuation",
                "Digits",
                "UnicodeScripts",
                "FixedLength",
            }
        ),
    ),
    "post_processor": (
        "processors",
        frozenset({"RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing"}),
    ),
    "decoder": (
        "decoders",
        frozenset(
            {"BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Replace", "Fuse", "Strip", "ByteFallback"}
        ),
    ),
}
_MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")


class UnsoundTokenizerError(ValueError):
    """Why no text may be given to a tokenizer."""


def check_tokenizer_text(content: bytes) -> None:
    """Raises UnsoundTokenizerError for a tokenizer.json that is none, or that no text may be given to."""
    if (containers := content.count(b"[") + content.count(b"{")) > _MAX_CONTAINERS:
        raise UnsoundTokenizerError(f"{containers} lists and objects, and {_MAX_CONTAINERS} is the most")
    try:
        described = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise UnsoundTokenizerError(f"not UTF-8 text: byte {error.start} is wrong") from None
    except RecursionError:
        raise UnsoundTokenizerError("it is nested too deep") from None
    check_tokenizer(described)


def check_tokenizer(described: object) -> None:
    """Raises UnsoundTokenizerError as `check_tokenizer_text`, for what the file's JSON is."""
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise UnsoundTokenizerError("it has no object `model`")
    growth = {part: _part_growth(described.get(part), part) for part in _PARTS}
    # What one letter of a text becomes is what all steps before the model make of it.
    for what, grown in (
        ("normalizer and pre_tokenizer", growth["normalizer"] * growth["pre_tokenizer"]),
        ("decoder", growth["decoder"]),
        ("post_processor", growth["post_processor"]),
    ):
        if grown > MAX_GROWTH:
            raise UnsoundTokenizerError(
                f"{what}: a text may grow to {grown} times its size, and {MAX_GROWTH} is the most"
            )
    _check_added(described.get("added_tokens"))
    _check_model(described["model"])


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnsoundTokenizerError("a key is there twice")
    return found


def _part_growth(value: object, part: str) -> int:
    """How many times as large a text can be after all steps of a part, each of which is checked."""
    grown = 1
    for number, step in enumerate(_steps(value, part, _MAX_DEPTH), 1):
        if number > _MAX_STEPS:
            raise UnsoundTokenizerError(f"{part}: expected at most {_MAX_STEPS} steps")
        # A bound of the bound: what comes of a hundred steps is no number to print.
        grown = min(grown * _growth(step, part), 1 << 62)
    return grown


def _steps(value: object, part: str, depth: int) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, those of its sequences in their order."""
    if value is None:
        return
    members, kinds = _PARTS[part]
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise UnsoundTokenizerError(f"{part}: expected an object with a type, got {type(value).__name__}")
    if kind == "Sequence":
        several = value.get(members)
        if not isinstance(several, list) or depth == 0:
            raise UnsoundTokenizerError(f"{part}: expected a sequence of {members}, at most {_MAX_DEPTH} deep")
        for one in several:
            yield from _steps(one, part, depth - 1)
    elif kind in kinds:
        yield value
    else:
        raise UnsoundTokenizerError(
            f"{part}: unknown kind {kind!r:.60}; the kinds are {', '.join(sorted(kinds))} and Sequence"
        )


def _growth(step: Mapping[str, Any], part: str) -> int:
    """How many times as large a text can be after one step. Raises UnsoundTokenizerError."""
    match step["type"]:
        case "Replace":
            return _replace_growth(step, part)
        case "Prepend":
            return 1 + len(_text(step, "prepend", part))
        case "ByteLevel":
            return 4 if part in ("normalizer", "pre_tokenizer") else 1  # a character may have as many bytes
        case "Metaspace" if part == "pre_tokenizer":
            return 2  # a sign before every piece, and each letter may be one
        case "Precompiled":
            return _charsmap_growth(_text(step, "precompiled_charsmap", part))
        case "Split":
            _pattern(step, part)
        case "FixedLength":
            if _number(step.get("length", 5), f"{part}: length") < 1:
                raise UnsoundTokenizerError(f"{part}: length: expected 1 or more, got 0")
        case "Strip" if part == "decoder":
            for end in ("start", "stop"):
                if _number(step.get(end, 0), f"{part}: {end}") > _MAX_STRIPPED:
                    raise UnsoundTokenizerError(f"{part}: {end}: expected at most {_MAX_STRIPPED}, got {step[end]}")
        case "BPEDecoder" | "WordPiece" | "CTC":
            return 2
        case "TemplateProcessing":
            return _template_growth(step, part)
    return 1


def _replace_growth(step: Mapping[str, Any], part: str) -> int:
    """What stands for a pattern, beside the shortest text that has it: one letter of a regular expression's, or none."""
    literal, content = _pattern(step, part), _text(step, "content", part)
    if literal:
        return max(1, -(-len(content) // len(literal)))
    return 1 + len(content)


def _pattern(step: Mapping[str, Any], part: str) -> str | None:
    """The text that is looked for; None where it is a regular expression, which is checked."""
    match step.get("pattern"):
        case {"String": str(text)}:
            return text
        case {"Regex": str(source)}:
            try:
                check_regex(source)
            except ValueError as error:
                raise UnsoundTokenizerError(f"{part}: the regular expression {source!r:.80} {error}") from None
            return None
    raise UnsoundTokenizerError(f"{part}: pattern: expected a String or a Regex")


def _charsmap_growth(encoded: str) -> int:
    """The longest text that SentencePiece's map puts for a character: 4 bytes of the trie's size, the trie, the texts."""
    place = "normalizer: precompiled_charsmap"
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise UnsoundTokenizerError(f"{place}: not base64: {error}") from None
    size = int.from_bytes(content[:4], "little")
    if len(content) < 4 or size % 4 or not 4 <= size <= len(content) - 4:
        raise UnsoundTokenizerError(f"{place}: its trie has {size} bytes by its own word, of {len(content)} in all")
    try:
        texts = content[4 + size :].decode()
    except UnicodeDecodeError as error:
        raise UnsoundTokenizerError(f"{place}: its texts are not UTF-8: byte {error.start} is wrong") from None
    return max(1, *map(len, texts.split("\0")))


def _template_growth(step: Mapping[str, Any], part: str) -> int:
    """How often the text itself stands in a template; what stands around it is bounded."""
    pieces, known = step.get("single"), step.get("special_tokens")
    if not isinstance(pieces, list) or not isinstance(known, dict):
        raise UnsoundTokenizerError(f"{part}: expected a list `single` and an object `special_tokens`")
    added = 0
    for piece in pieces:
        match piece:
            case {"SpecialToken": {"id": str(name)}}:
                ids = known[name].get("ids") if isinstance(known.get(name), dict) else None
                if not isinstance(ids, list):
                    raise UnsoundTokenizerError(f"{part}: special_tokens: there are no ids of {name!r:.60}")
                added += len(ids)
            case {"Sequence": _}:
                pass
            case _:
                raise UnsoundTokenizerError(f"{part}: single: expected each piece to be a SpecialToken or a Sequence")
    if added > _MAX_TEMPLATE_TOKENS:
        raise UnsoundTokenizerError(
            f"{part}: single: expected at most {_MAX_TEMPLATE_TOKENS} special tokens, got {added}"
        )
    return max(1, sum("Sequence" in piece for piece in pieces))


def _check_added(tokens: object) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise UnsoundTokenizerError("added_tokens: expected a list of objects")
    characters = sum(len(_text(token, "content", "added_tokens")) for token in tokens)
    if characters > _MAX_ADDED_CHARACTERS:
        raise UnsoundTokenizerError(
            f"added_tokens: expected {_MAX_ADDED_CHARACTERS} characters at most, got {characters}"
        )


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type")
    if kind is not None and kind not in _MODELS:  # older files have none
        raise UnsoundTokenizerError(f"model: unknown kind {kind!r:.60}; the kinds are {', '.join(_MODELS)}")
    longest = _number(model.get("max_input_chars_per_word", 100), "model: max_input_chars_per_word")
    if longest > _MAX_WORD:
        raise UnsoundTokenizerError(f"model: max_input_chars_per_word: expected at most {_MAX_WORD}, got {longest}")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # of a Unigram model
        for pair in vocabulary:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                raise UnsoundTokenizerError("model: vocab: expected pairs of a piece and its score")
            if len(pair[0]) > _MAX_PIECE:
                raise UnsoundTokenizerError(
                    f"model: vocab: expected pieces of {_MAX_PIECE} characters at most, got {len(pair[0])}"
                )


def _text(step: Mapping[str, Any], key: str, part: str) -> str:
    value = step.get(key)
    if not isinstance(value, str):
        raise UnsoundTokenizerError(f"{part}: {key}: expected text, got {type(value).__name__}")
    return value


def _number(value: object, place: str) -> int:
    if type(value) is not int or value < 0:
        raise UnsoundTokenizerError(f"{place}: expected a whole number, none below 0, got {value!r:.60}")
    return value
