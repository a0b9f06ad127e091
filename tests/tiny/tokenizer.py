"""A tokenizer of one token a byte."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

BOS = 256


EOS = 257


def byte_tokenizer() -> Tokenizer:
    """One token a byte, with <s> and </s>; its post-processor adds both where it is asked to."""
    # BPE over the bytes' printable stand-ins, without a merge; token ids are in the order of these.
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert tokenizer.token_to_id("<s>") == BOS
    assert tokenizer.token_to_id("</s>") == EOS
    return tokenizer
