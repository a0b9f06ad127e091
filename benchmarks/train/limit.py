"""How fast could any LoRA step be on this machine? argv is a checkpoint's folder and the number of threads.

A step multiplies each linear weight [O, I] twice, forward (x W^T) and for the gradient of x (dy W): 4 FLOP per weight
and token. That is timed here with torch.mm, one weight of each kind, and summed over the layers and the head; a step
that computes the layers again in its backward multiplies those three times (6 FLOP). The embedding is looked up, attention,
norms, dequantization and the adapter itself are left out: no real step gets there.
"""

# N rows (tokens of a batch), I in features, O out features

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from fedlora.family import DecoderShape, decoder_shape

from train.job import LENGTH, SEQUENCES

_TOKENS = SEQUENCES * LENGTH
_HEAD_ROWS = 8192  # the head is timed on as many of its rows, and scaled
_REPEATS, _ENOUGH_S = 7, 1.5


def limits(shape: DecoderShape, dtype: torch.dtype) -> dict[str, float]:
    """Tokens per CPU second of the two schedules, and the GFLOP per CPU second behind them."""
    forward, backward = 0.0, 0.0
    modules = Counter(shape.linear_modules().values())
    for (rows, columns), count in modules.items():
        once = _mm_seconds(rows, columns, dtype)
        forward, backward = forward + count * once[0], backward + count * once[1]
    vocabulary, hidden = shape.vocab_size, shape.hidden_size
    head_rows = min(vocabulary, _HEAD_ROWS)
    head = sum(_mm_seconds(head_rows, hidden, dtype)) * vocabulary / head_rows
    weights = vocabulary * hidden + sum(rows * columns * count for (rows, columns), count in modules.items())
    return {
        "gflops": 4e-9 * weights * _TOKENS / (forward + backward + head),
        "tokens_per_s": _TOKENS / (forward + backward + head),
        "recompute_tokens_per_s": _TOKENS / (2 * forward + backward + head),
    }


def _mm_seconds(rows: int, columns: int, dtype: torch.dtype) -> tuple[float, float]:
    """CPU seconds of x W^T and of dy W, W [O, I]: the fastest of some, since a limit is what is possible."""
    weight = torch.randn(rows, columns).to(dtype)
    x, dy = torch.randn(_TOKENS, columns).to(dtype), torch.randn(_TOKENS, rows).to(dtype)
    return _fastest(x, weight.T), _fastest(dy, weight)


def _fastest(a: torch.Tensor, b: torch.Tensor) -> float:
    out = torch.mm(a, b)
    taken: list[float] = []
    while len(taken) < _REPEATS and sum(taken) < _ENOUGH_S:
        # The time of several threads' processor is only known to the tick: theirs is that of the clock, for each.
        clock, threads = (
            (time.process_time, 1) if torch.get_num_threads() == 1 else (time.perf_counter, torch.get_num_threads())
        )
        started = clock()
        torch.mm(a, b, out=out)
        taken.append((clock() - started) * threads)
    return min(taken)


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    shape = decoder_shape(json.loads((Path(sys.argv[1]) / "config.json").read_text()), sys.argv[1])
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    print(json.dumps({name: limits(shape, dtype) for name, dtype in dtypes.items()}))


if __name__ == "__main__":
    main()
