"""Which texts does a quantized encoder still find nearest to each other?

    python benchmarks/bench_encoder.py CHECKPOINT TEXTS.jsonl.gz        # a few minutes

CHECKPOINT is an encoder without a head; TEXTS has a record with "text" a line. Each layout is packed, exported, and embeds
the first texts; the reference is transformers in float32. Neighbours kept: of the ten texts nearest to each text by
transformers' vectors, the share that is among the ten nearest by the pack's, on average. Milliseconds are
those of the processor: others may run beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fedlora.base.pack import WEIGHTS, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora_client.encoder.pooling import pooled
from fedlora_export.export import export_base
from fedlora_serve.embedding import Embedder
from numpy.typing import NDArray

from harness.record import record

Floats = NDArray[np.float32]  # [texts, E], of length 1
LAYOUTS = [(4, block) for block in (128, 64, 32)] + [(8, block) for block in (128, 64, 32)]
_NEAREST = 10
_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = read_texts(options.texts, options.count)
    expected: Floats | None = None
    figures: dict[str, float] = {}
    print("| bits | block | size, MB | neighbours kept | cosine | ms per text |\n|---|---|--:|--:|--:|--:|")
    for bits, block in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            pack = Path(folder) / "pack"
            make_pack(options.checkpoint, pack, Quantization(bits=bits, block_size=block, embedding_bits=8))
            export_base(open_pack(pack), pack, profiles=("base",))
            embedder = Embedder(pack, threads=options.threads)
            rows = [embedder.tokens(text) for text in texts]
            embedder.embed(rows[:_BATCH])
            began = time.process_time()
            got = unit(embedder.embed(rows))
            milliseconds = (time.process_time() - began) * 1e3 / len(rows)
            if expected is None:
                expected = reference(options.checkpoint, embedder, rows)
            kept, cosine = neighbours_kept(expected, got), float((expected * got).sum(1).mean())
            size = (pack / WEIGHTS).stat().st_size / 1e6
        print(f"| {bits} | {block} | {size:.1f} | {kept:.1%} | {cosine:.4f} | {milliseconds:.1f} |", flush=True)
        figures |= {f"kept_{bits}_{block}": round(kept, 4), f"cosine_{bits}_{block}": round(cosine, 5)}
        figures |= {f"mb_{bits}_{block}": round(size, 2), f"ms_{bits}_{block}": round(milliseconds, 2)}
    record("encoder", {"checkpoint": options.checkpoint, "texts": len(texts), "threads": options.threads}, figures)


def read_texts(path: Path, count: int) -> list[str]:
    """The first texts of a file with a record a line."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


def reference(checkpoint: str, embedder: Embedder, rows: list[list[int]]) -> Floats:
    """transformers' states in float32, pooled as the checkpoint says, one text at a time."""
    from transformers import AutoModel  # takes seconds, which who imports this module for its arithmetic does not need

    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)  # nosec B615
    model, shape = model.eval(), embedder.base.model
    steps = shape.embedding  # type: ignore[union-attr]  # an embedder's base is an encoder
    floats = {name: torch.from_numpy(embedder.base.floats(name)) for name in steps.float_tensors()}
    vectors = []
    with torch.no_grad():
        for row in rows:
            tokens = torch.tensor([row])
            vectors.append(
                pooled(steps, model(tokens).last_hidden_state, torch.ones_like(tokens, dtype=torch.bool), floats)
            )
    return unit(torch.cat(vectors).numpy())


def unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def neighbours_kept(expected: Floats, got: Floats, nearest: int = _NEAREST) -> float:
    """The share of the `nearest` of each text by `expected` that are among the nearest by `got`; a text is not its own."""
    before, after = (np.argsort(-(v @ v.T) + 4 * np.eye(len(v)), axis=1)[:, :nearest] for v in (expected, got))
    return float(np.mean([len(set(a) & set(b)) / nearest for a, b in zip(before, after, strict=True)]))


if __name__ == "__main__":
    main()
