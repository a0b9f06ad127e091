"""Pre-train fedlora-nano from scratch on the standard library's text and write a Hugging Face checkpoint.

    python tools/nano/pretrain.py -o build/nano            # 78 minutes on one core with AVX-512 BF16
    fedlora pack build/nano -o core/fedlora/nano --force
    python tools/nano/measure.py

It prints, and writes to DIR/pretraining.json, the held-out loss beside that of a unigram and of a bigram model of the
same tokens. The text is this interpreter's own: another version of CPython gives another corpus, whose sha256 is in the
record. Thread count and instruction set change the last digits of the sums, and so the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fedlora_simulations.datasets.stdlib import digest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import BOS, EOS, VOCABULARY, WINDOW, Tokens, documents, ngram_losses, tokens_of

BATCH, PEAK_LR, WARMUP, SEED = 16, 3e-3, 200, 1


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE: no text is out of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, held_out: Tokens) -> float:
    """Mean nats per predicted token over consecutive windows."""
    model.eval()
    windows = held_out[: len(held_out) // WINDOW * WINDOW].reshape(-1, WINDOW)
    total = 0.0
    for rows in np.array_split(windows, max(1, len(windows) // 32)):
        ids = torch.from_numpy(rows)
        logits = model(input_ids=ids[:, :-1]).logits
        total += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return total / (windows.shape[0] * (WINDOW - 1))


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    return PEAK_LR * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))))


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)

    train_documents, held_out_documents = documents()
    tokenizer = train_tokenizer([text for _, text in train_documents])
    write_tokenizer(tokenizer, arguments.output)
    train, held_out = tokens_of(train_documents, tokenizer), tokens_of(held_out_documents, tokenizer)
    unigram, bigram = ngram_losses(train, held_out)
    record: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "corpus_sha256": digest(train_documents + held_out_documents),
        "documents": len(train_documents) + len(held_out_documents),
        "train_tokens": len(train),
        "held_out_tokens": len(held_out),
        "unigram_loss": unigram,
        "bigram_loss": bigram,
    }
    print(json.dumps(record), flush=True)

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=5,
            num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
            max_position_embeddings=WINDOW, bos_token_id=0, eos_token_id=1, attn_implementation="eager",
        )
    )  # fmt: skip
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:  # [BATCH, WINDOW + 1]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of) if os.environ.get("NANO_COMPILE", "1") == "1" else loss_of
    generator = np.random.default_rng(SEED)
    started, running = time.monotonic(), 0.0
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps)
        starts = generator.integers(0, len(train) - WINDOW - 1, BATCH)
        ids = torch.from_numpy(np.stack([train[s : s + WINDOW + 1] for s in starts]))
        loss = compiled(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {running / 100:.3f} {time.monotonic() - started:.0f} s", flush=True)
            running = 0.0
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            record |= {"steps": step + 1, "seconds": round(time.monotonic() - started)}
            record["held_out_loss"] = held_out_loss(model, held_out)
            print(json.dumps(record), flush=True)
            model.save_pretrained(arguments.output)
            (arguments.output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
