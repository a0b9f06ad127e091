"""What does quantization lose, by layout and by the rule that finds the scales?

    python benchmarks/bench_quantize.py [--nano DIR]     # DIR: default build/nano

The relative Frobenius error of the linear weights, |W - dequantized| / |W|, and the loss on text, in nats per token, of the
model with those weights and an 8-bit embedding of the same layout, as a pack holds them. Models:

    stories260K    ../shared/models/stories260K, beside the repository, on 400 stories of ../shared/data/tinystories-1k
    fedlora-nano   the checkpoint that `python tools/nano/pretrain.py -o build/nano` writes, on its held-out documents
    normal, t(5)   independent numbers, normal or of Student's t with 5 degrees of freedom: no text, no loss

What is not there is left out, and that is said. NF4 is the reference below: 4 bits, 16 quantiles of the normal distribution
per block of 64, scaled by the largest entry (Dettmers et al., arXiv:2305.14314). Losses are those of `transformers` on
dequantized weights. A third table times both rules. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from fedlora.base.checkpoint import Checkpoint
from fedlora.base.quantize import QuantizedMatrix, dequantize, quantize
from fedlora.base.scales import SCALE_RULES, ScaleRule
from fedlora.family import decoder_shape
from fedlora_client.data.tokenizer import open_tokenizer
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from harness.record import record

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"
STORIES = 400
REPEATS = 5  # of each timing

Weight = NDArray[np.float32]  # [O, I]
Weights = Mapping[str, Weight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to store the linear weights."""

    bits: int
    symmetric: bool
    block_size: int

    @property
    def stored_bits(self) -> float:
        """The bits of one weight, with its share of a float32 scale and of a zero point."""
        return self.bits + (32 + (0 if self.symmetric else self.bits)) / self.block_size

    def __str__(self) -> str:
        return f"{self.bits} bits {'symmetric' if self.symmetric else 'asymmetric'} {self.block_size}"


LAYOUTS = [
    Layout(bits=bits, symmetric=symmetric, block_size=block_size)
    for bits, symmetric, block_size in product((4, 8), (True, False), (32, 64, 128))
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Weights, and what a model loses on its text with others in their place."""

    name: str
    linear: Weights
    vocabulary: Weights  # the embedding, and the head where it is not tied
    losses: Callable[[Weights], NDArray[np.float64]] | None  # mean nats per token of each window

    @property
    def hidden_size(self) -> int:
        return int(min(weight.shape[1] for weight in self.linear.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nano", type=Path, default=PROJECT / "build" / "nano", help="the checkpoint of fedlora-nano")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for subject in subjects(arguments.nano):
        print_losses(subject, figures)
    print_times(figures)
    record("quantize", {"stories": STORIES, "repeats": REPEATS}, figures)


def subjects(nano: Path) -> Iterator[Subject]:
    stories, texts = SHARED / "models" / "stories260K", SHARED / "data" / "tinystories-1k" / "train1k.jsonl.gz"
    if stories.is_dir() and texts.is_file():
        yield model_subject("stories260K", stories, story_windows(stories, texts))
    else:
        print(f"stories260K is left out: {stories} or {texts} is not there", flush=True)
    if (nano / "model.safetensors").is_file():
        yield model_subject("fedlora-nano", nano, held_out_windows(nano))
    else:
        print(
            f"fedlora-nano is left out: {nano} is not there; make it: python tools/nano/pretrain.py -o {nano}",
            flush=True,
        )
    generator, shape = np.random.default_rng(0), (1024, 1024)
    for name, numbers in (("normal", generator.normal(size=shape)), ("t(5)", generator.standard_t(5, size=shape))):
        yield Subject(name=name, linear={"W": numbers.astype(np.float32)}, vocabulary={}, losses=None)


def print_losses(subject: Subject, figures: dict[str, float]) -> None:
    """A row for float32, for every layout by both rules, and for NF4."""
    print(f"\n{subject.name}\n")
    print("| bits | zero point | block | stored bits | error, max-abs | error, mse | loss, max-abs | loss, mse |")
    print("|---|---|---|---|---|---|---|---|")
    unchanged = measured(subject, "float32", subject.linear, {}, figures)
    print(f"| float32 | | | 32 | | | {unchanged.loss} | |", flush=True)
    deviations: list[float] = []  # standard errors, over windows, of what mse changes in the loss
    for layout in LAYOUTS:
        cells = [f"{layout.bits}", "fixed" if layout.symmetric else "stored", f"{layout.block_size}"]
        cells.append(f"{layout.stored_bits:g}")
        if subject.hidden_size % layout.block_size:  # packing refuses it
            print(f"| {' | '.join(cells)} | - | - | - | - |")
            continue
        results = []
        for rule in SCALE_RULES:
            linear = rounded(subject.linear, layout, rule)
            vocabulary = rounded(subject.vocabulary, replace(layout, bits=8), rule)
            results.append(measured(subject, f"{layout} {rule}", linear, vocabulary, figures))
        cells += [f"{result.error:.3%}" for result in results] + [result.loss for result in results]
        print(f"| {' | '.join(cells)} |", flush=True)
        first, second = (result.losses for result in results)
        if len(first):
            deviations.append(float((second - first).std() / len(first) ** 0.5))
    linear = {name: nf4(weight, 64) for name, weight in subject.linear.items()}
    vocabulary = rounded(subject.vocabulary, Layout(bits=8, symmetric=True, block_size=64), "max-abs")
    result = measured(subject, "NF4 64", linear, vocabulary, figures)
    print(f"| NF4 | fixed | 64 | 4.5 | {result.error:.3%} | | {result.loss} | |")
    if deviations:
        print(f"\nStandard error of what mse changes in a loss: at most {max(deviations):.4f}", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one way to store a subject loses."""

    error: float
    losses: NDArray[np.float64]  # of each window; none where there is no text

    @property
    def loss(self) -> str:
        return f"{self.losses.mean():.4f}" if len(self.losses) else "-"


def measured(subject: Subject, name: str, linear: Weights, vocabulary: Weights, figures: dict[str, float]) -> Result:
    """The subject with `linear` and `vocabulary` in place of its own weights, kept in `figures` under `name`."""
    losses = np.empty(0) if subject.losses is None else subject.losses({**linear, **vocabulary})
    result = Result(error=relative_error(subject.linear, linear), losses=losses)
    figures[f"{subject.name} {name} error"] = round(result.error, 6)
    if len(losses):
        figures[f"{subject.name} {name} loss"] = round(float(losses.mean()), 5)
    return result


def print_times(figures: dict[str, float]) -> None:
    """Medians of the processor's time of `quantize` on 2^20 normal numbers in blocks of 64."""
    weight = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    print("\nns per weight\n\n| bits | zero point | max-abs | mse |\n|---|---|---|---|")
    for bits, symmetric in product((4, 8), (True, False)):
        cells = []
        for rule in SCALE_RULES:
            layout, times = Layout(bits=bits, symmetric=symmetric, block_size=64), []
            for _ in range(REPEATS + 1):
                started = time.process_time()
                _quantized(weight, layout, rule)
                times.append(time.process_time() - started)
            nanoseconds = statistics.median(times[1:]) / weight.size * 1e9  # the first one warms up
            figures[f"{layout} {rule} ns per weight"] = round(nanoseconds, 1)
            cells.append(f"{nanoseconds:.0f}")
        print(f"| {bits} | {'fixed' if symmetric else 'stored'} | {' | '.join(cells)} |")
    print()


def rounded(weights: Weights, layout: Layout, rule: ScaleRule) -> Weights:
    """What is left of `weights`."""
    return {name: dequantize(_quantized(weight, layout, rule)) for name, weight in weights.items()}


def _quantized(weight: Weight, layout: Layout, rule: ScaleRule) -> QuantizedMatrix:
    return quantize(weight, bits=layout.bits, block_size=layout.block_size, symmetric=layout.symmetric, scale_rule=rule)


def nf4(weight: Weight, block_size: int) -> Weight:
    """`weight` by the nearest of 16 quantiles times its block's largest magnitude.

    The quantiles are 8 of the normal distribution's lower half and 9 of its upper half, evenly spaced in probability from
    (1/32 + 1/30) / 2 on, the middle one shared, over the largest.
    """
    normal, tail = statistics.NormalDist(), (1 / 32 + 1 / 30) / 2
    lower, upper = np.linspace(tail, 0.5, 8), np.linspace(0.5, 1 - tail, 9)
    levels = np.array([normal.inv_cdf(p) for p in (*lower[:-1], *upper)])
    levels /= levels.max()
    rows, columns = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -columns % block_size))).reshape(rows, -1, block_size)
    scales = np.abs(blocks).max(2, keepdims=True)
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, blocks / np.where(scales == 0, 1, scales))
    kept: Weight = (levels[nearest] * scales).reshape(rows, -1)[:, :columns].astype(np.float32)
    return kept


def relative_error(weights: Weights, kept: Weights) -> float:
    """|W - kept| / |W| over all weights at once."""
    off = sum(float(np.square(kept[name] - weight, dtype=np.float64).sum()) for name, weight in weights.items())
    whole = sum(float(np.square(weight, dtype=np.float64).sum()) for weight in weights.values())
    return float((off / whole) ** 0.5)


def model_subject(name: str, directory: Path, windows: torch.Tensor) -> Subject:
    """The checkpoint in `directory` on `windows` [M, T] of tokens."""
    checkpoint = Checkpoint(directory)
    shape = decoder_shape(checkpoint.config, str(directory))
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)  # nosec B615
    model.eval()

    def weights(modules: Mapping[str, tuple[int, int]]) -> Weights:
        return {f"{m}.weight": checkpoint.rows(f"{m}.weight", 0, rows) for m, (rows, _) in modules.items()}

    @torch.no_grad()
    def losses(changed: Weights) -> NDArray[np.float64]:
        model.load_state_dict({name: torch.from_numpy(weight.copy()) for name, weight in changed.items()}, strict=False)
        parts = []
        for rows in torch.split(windows, 16):
            logits = model(input_ids=rows[:, :-1]).logits
            nats = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
            parts.append(nats.view(len(rows), -1).double().mean(1).numpy())
        return np.concatenate(parts)

    linear, vocabulary = weights(shape.linear_modules()), weights(shape.vocabulary_modules())
    return Subject(name=name, linear=linear, vocabulary=vocabulary, losses=losses)


def story_windows(model: Path, texts: Path) -> torch.Tensor:
    """[M, 512]: stories in a row, each after <s>."""
    config = LlamaConfig.from_pretrained(model)  # nosec B615
    tokenizer = open_tokenizer(model)
    with gzip.open(texts, "rt", encoding="utf-8") as file:
        stories = [json.loads(line)["text"] for line in file][:STORIES]
    encoded = tokenizer.encode_batch(stories, add_special_tokens=False)
    row = [token for story in encoded for token in (config.bos_token_id, *story.ids)]
    return torch.tensor(row[: len(row) // 512 * 512]).view(-1, 512)


def held_out_windows(model: Path) -> torch.Tensor:
    """[M, 256]: the documents that fedlora-nano was not trained on, in a row."""
    sys.path.append(str(PROJECT / "tools" / "nano"))
    from corpus import WINDOW, documents, tokens_of

    row = torch.from_numpy(tokens_of(documents()[1], open_tokenizer(model)))
    return row[: len(row) // WINDOW * WINDOW].view(-1, WINDOW)


if __name__ == "__main__":
    main()
