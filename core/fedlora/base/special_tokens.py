"""What a tokenizer's own files say of the beginning and the end of a text, read without the library `tokenizers`.

    tokenizer.json                    post_processor: the tokens that are put before and after every text
    tokenizer_config.json             eos_token: the token that ends a document
    special_tokens_map.json           the same, of an older transformers

This is what AutoTokenizer of transformers 5 does: where there is a tokenizer.json, its post-processor decides, and
add_bos_token and add_eos_token in tokenizer_config.json are not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fedlora.errors import PackError
from fedlora.family import DecoderShape
from fedlora.files.bounded import read_bounded
from fedlora.files.documents import read_object

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"

# The text that fedlora-nano learned began with <s>, which its tokenizer.json, part of its fingerprint, does not say.
_BEGINNINGS: Mapping[str, tuple[int, ...]] = {
    "9e46d0c60bc13f0ba080a80fbaecc7bd3ef08276b8b226ce554df4692f6f77a1": (0,),
}
_MAX_TOKENIZER_BYTES = 1 << 26
_MAX_CONTAINERS = 1 << 21  # lists and objects; a list of merges has one for each
_MOST_AROUND = 1024  # tokens before a text, and after it
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The tokens around a text, and the one that is named as its end."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    end: int | None = None


def read_special_tokens(directory: Path, names: Collection[str]) -> SpecialTokens | None:
    """Those of the tokenizer in `directory`, of whose files `names` belong to it; None where none can be read there.

    A damaged file is the error of whoever opens the tokenizer itself.
    """
    try:
        content = read_bounded(directory / TOKENIZER, _MAX_TOKENIZER_BYTES)
        if content.count(b"[") + content.count(b"{") > _MAX_CONTAINERS:
            return None
        members = _members(content.decode())
        before, after = _around(members.get("post_processor"))
        before = _BEGINNINGS.get(hashlib.sha256(content).hexdigest(), before)
        return SpecialTokens(before=before, after=after, end=_named_end(directory, names, members))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def with_special_tokens(model: DecoderShape, tokens: SpecialTokens | None) -> DecoderShape:
    """The model, whose texts begin and end as its tokenizer has it; where that says nothing, as its config.json has it."""
    if tokens is None:
        return model
    ends = model.eos_token_ids
    if tokens.end is not None and 0 <= tokens.end < model.vocab_size:
        ends = tuple(dict.fromkeys((tokens.end, *ends)))
    return replace(model, tokens_before_text=tokens.before, tokens_after_text=tokens.after, eos_token_ids=ends)


def _members(text: str) -> dict[str, Any]:
    """The members of a JSON object up to `model`, which is nearly all of the file and, as a rule, the last."""
    decoder, members = json.JSONDecoder(), {}
    place = _after(text, 0, "{")
    while True:
        key, place = decoder.raw_decode(text, _skipped(text, place))
        place = _skipped(text, _after(text, place, ":"))
        if key == "model" and "post_processor" in members and "added_tokens" in members:
            members["model"] = text[place:]  # for whoever has to read it after all
            return members
        members[key], place = decoder.raw_decode(text, place)
        place = _skipped(text, place)
        if text[place : place + 1] != ",":
            return members
        place += 1


def _skipped(text: str, place: int) -> int:
    """The place after the blanks at `place`."""
    found = _SPACE.match(text, place)
    assert found, "no blank is a match too"
    return found.end()


def _after(text: str, place: int, sign: str) -> int:
    place = _skipped(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"expected {sign} at {place}")
    return place + 1


def _around(processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the tokens before, the tokens after) one text, by the post-processor's description in tokenizer.json."""
    match processor:
        case {"type": "TemplateProcessing", "single": pieces, "special_tokens": known}:
            places = [place for place, piece in enumerate(pieces) if "Sequence" in piece]
            ids = [known[piece["SpecialToken"]["id"]]["ids"] if "SpecialToken" in piece else [] for piece in pieces]
            return _joined(ids[: places[0]]), _joined(ids[places[-1] + 1 :])
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, int(first)], "sep": [_, int(last)]}:
            return (first,), (last,)
        case {"type": "Sequence", "processors": processors}:
            each = [_around(one) for one in processors]  # each is put around what the one before it gave
            return _joined(before for before, _ in reversed(each)), _joined(after for _, after in each)
    return (), ()


def _joined(parts: Iterable[Iterable[int]]) -> tuple[int, ...]:
    ids = tuple(islice(chain.from_iterable(parts), _MOST_AROUND + 1))  # a template may name its own tokens many times
    if len(ids) > _MOST_AROUND or any(type(token) is not int for token in ids):
        raise ValueError(f"expected at most {_MOST_AROUND} token ids")
    return ids


def _named_end(directory: Path, names: Collection[str], members: Mapping[str, Any]) -> int | None:
    """The id of the token that the tokenizer's settings name eos_token."""
    settings = _settings(directory / SETTINGS) if SETTINGS in names else {}
    if SPECIAL in names and "added_tokens_decoder" not in settings:
        settings = settings | _settings(directory / SPECIAL)
    named = settings.get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    if not isinstance(text, str):
        return None
    for token in members.get("added_tokens") or ():
        if token["content"] == text:
            return int(token["id"])
    model = members.get("model")
    if isinstance(model, str):
        model, _ = json.JSONDecoder().raw_decode(model)
    vocabulary = (model or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # of a Unigram model: pairs of a token and its score
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    found = vocabulary.get(text)
    return found if type(found) is int else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, PackError, "a tokenizer's settings")
    except PackError:  # it is the error of whoever needs the chat template in it
        return {}
