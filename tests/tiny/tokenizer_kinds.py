"""Small tokenizers of every kind that models bring, trained on a few sentences, as a checkpoint holds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "Lily said hello to the cat.\nThe cat ran home, and Tom said: at home we play.\n",
    "Once upon a time there was a big dog; the dog had a red ball.  It was happy!\n",
    'Question: 12 + 7 = 19?\nAnswer: yes.\n\n\tdef main(x):\n    return {"a": [1, 2]}\n',
    "Das Café liegt am Fluß, naïve façade, 東京 で。 👍🏽 emoji\n",
)
_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|im_end|>")
_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

Processor = Callable[[Tokenizer], Any]


def _template(single: str, **pair: str) -> Processor:
    def made(tokenizer: Tokenizer) -> Any:
        used = [(name, tokenizer.token_to_id(name)) for name in _SPECIAL if name in single]
        return processors.TemplateProcessing(single=single, special_tokens=used, **pair)

    return made


def _around(kind: Any, **how: Any) -> Processor:
    return lambda t: kind(("</s>", t.token_to_id("</s>")), ("<s>", t.token_to_id("<s>")), **how)


def _byte_level(tokenizer: Tokenizer) -> Any:
    return processors.ByteLevel(trim_offsets=False)


def _in_sequence(*made: Processor) -> Processor:
    return lambda tokenizer: processors.Sequence([one(tokenizer) for one in made])


def byte_level(processor: Processor | None, *, add_prefix_space: bool = False) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, **_TRAINER), processor)


def sentence_piece(processor: Processor | None, scheme: str) -> Tokenizer:
    """As Llama 2, Mistral and Phi-3 have it; `scheme` is `legacy`, or Metaspace's own."""
    # What the library trains cannot fall back to bytes: they are put into the vocabulary afterwards.
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(TEXT[:3], trainers.BpeTrainer(vocab_size=180, **_TRAINER))
    described = json.loads(tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    tokenizer = Tokenizer.from_str(json.dumps(described))
    strip = [decoders.Strip(content=" ", left=1)]
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    elif scheme == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        strip = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        strip = strip if scheme != "never" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _with_processor(tokenizer, processor)


def unigram(processor: Processor | None) -> Tokenizer:
    """As T5 and Albert have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer(vocab_size=160, unk_token="<unk>", **_TRAINER), processor)


def word_piece(processor: Processor | None) -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, **_TRAINER), processor)


_TRAINER: Mapping[str, Any] = {"special_tokens": list(_SPECIAL), "show_progress": False}


def _trained(tokenizer: Tokenizer, trainer: Any, processor: Processor | None) -> Tokenizer:
    tokenizer.train_from_iterator(TEXT, trainer)
    return _with_processor(tokenizer, processor)


def _with_processor(tokenizer: Tokenizer, processor: Processor | None) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    if processor is not None:
        tokenizer.post_processor = processor(tokenizer)
    return tokenizer


_BOS, _EOS, _BOTH = _template("<s> $A"), _template("$A </s>"), _template("<s> $A </s>")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_NO_BOS: Mapping[str, Any] = {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}

# {name: (what makes it, its settings)}
KINDS: Mapping[str, tuple[Callable[[], Tokenizer], Mapping[str, Any]]] = {
    "bytes, no processor": (lambda: byte_level(None), _NAMES),
    "bytes, byte-level processor (Qwen)": (lambda: byte_level(_byte_level), _NO_BOS),
    "bytes, no processor, add_bos_token": (lambda: byte_level(None), {**_NAMES, "add_bos_token": True}),
    "bytes, bos": (lambda: byte_level(_BOS), _NAMES),
    "bytes, bos, add_bos_token false": (lambda: byte_level(_BOS), {**_NAMES, "add_bos_token": False}),
    "bytes, eos": (lambda: byte_level(_EOS), {**_NAMES, "add_eos_token": True}),
    "bytes, bos and eos": (lambda: byte_level(_BOTH), _NAMES),
    "bytes, bos within a sequence (Llama 3)": (lambda: byte_level(_in_sequence(_byte_level, _BOS)), _NAMES),
    "bytes, RoBERTa within a sequence": (lambda: byte_level(_in_sequence(_around(processors.RobertaProcessing))), _NAMES),
    "bytes, two tokens before": (lambda: byte_level(_template("<s> <pad> $A")), _NAMES),
    "bytes, prefix space, RoBERTa": (
        lambda: byte_level(_around(processors.RobertaProcessing), add_prefix_space=True), {**_NAMES, "cls_token": "<s>"}
    ),
    "SentencePiece, legacy": (lambda: sentence_piece(_BOS, "legacy"), {**_NAMES, "legacy": True}),
    "SentencePiece, legacy, eos": (lambda: sentence_piece(_BOTH, "legacy"), _NAMES),
    "SentencePiece, first": (lambda: sentence_piece(_BOS, "first"), {**_NAMES, "legacy": False}),
    "SentencePiece, always": (lambda: sentence_piece(_BOS, "always"), _NAMES),
    "SentencePiece, never": (lambda: sentence_piece(_BOS, "never"), _NAMES),
    "SentencePiece, Gemma": (lambda: sentence_piece(_BOS, "gemma"), _NAMES),
    "SentencePiece, nothing added": (lambda: sentence_piece(_template("$A"), "legacy"), _NAMES),
    "Unigram, eos (T5)": (lambda: unigram(_EOS), {"eos_token": {"__type": "AddedToken", "content": "</s>", **_FLAGS}}),
    "WordPiece, template": (lambda: word_piece(_BOTH), {"cls_token": "<s>", "sep_token": "</s>"}),
    "WordPiece, BertProcessing": (lambda: word_piece(_around(processors.BertProcessing)), {"sep_token": "</s>"}),
}  # fmt: skip


def write_tokenizer(kind: str, directory: Path) -> Tokenizer:
    """The tokenizer, written into `directory` with its settings."""
    make, settings = KINDS[kind]
    tokenizer = make()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    return tokenizer
