"""What fedlora-nano has learned: its loss on text that it never saw, beside a unigram and a bigram model of its text.

    python tools/nano/measure.py [PACK]      # default: the pack that ships with fedlora

Prints one JSON object: nats per token. The counts behind the n-gram models are those of the running interpreter's text.
"""

from __future__ import annotations

import json
import sys

import torch
from fedlora.base.pack import open_pack
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import choose_compute
from fedlora_client.training.measuring import evaluate

from corpus import WINDOW, documents, ngram_losses, tokens_of


def main() -> None:
    base = open_pack(sys.argv[1] if len(sys.argv) > 1 else "nano")
    tokenizer = open_tokenizer(base.directory)
    train, held_out = (tokens_of(part, tokenizer) for part in documents())
    unigram, bigram = ngram_losses(train, held_out)
    whole = torch.from_numpy(held_out[: len(held_out) // WINDOW * WINDOW]).view(-1, WINDOW)
    inputs, targets = whole[:, :-1], whole[:, 1:]
    loss, tokens = evaluate(
        Decoder(base, choose_compute("float32")), None, Windows(inputs, targets, starts=torch.zeros_like(inputs))
    )
    print(json.dumps({"unigram": unigram, "bigram": bigram, "packed": loss, "tokens": tokens}))


if __name__ == "__main__":
    main()
