"""What do inputs for what scales modules cost a step: idle, and with an adapter of DoRA or IA3?

    python benchmarks/bench_scales.py                 # about 5 minutes
    python benchmarks/bench_scales.py --turns 8 --profile fast

A step of one sequence, one token after 128 or a prompt of 64, over the shape of SmolLM2-135M, random weights at 4 bits and
activations in int8, in one thread, with one buffer as past and present. Of each profile the graph without those inputs and
the one with them take turns of five steps in random order; seconds are of the processor, of each case the tenth percentile,
since what else a machine does only adds to them. A figure is the ratio to the graph without, which has no adapter, or,
under `used`, one of rank 8 on all modules. In `kernel` both are one graph: the operator reads what scales beside the
factors. `again` is the graph without beside itself: what chance does.
"""

# S rows, T tokens

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.exported.profiles import ROW_PROFILES, Profile
from fedlora.graph.packed_layers import INT8_ACCURACY
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.output_scale import scale_shapes
from fedlora.row_lora.library import row_lora
from fedlora_export.checks.graph_runs import adapter_feeds, numbered
from fedlora_export.export import build_graph
from numpy.typing import NDArray

from harness.checkpoints import CONFIGS, make_checkpoint
from harness.record import record

PROFILES: tuple[Profile, ...] = ("compat", "fast", "rows", "kernel")
_PAST, _PROMPT, _STEPS = 128, 64, 5
Arrays = Mapping[str, NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument(
        "--profile", choices=PROFILES, action="append", help="May be given several times.  [default: all]"
    )
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = _pack(Path(folder))
        for profile in options.profile or PROFILES:
            figures |= _compared(base, profile, options.turns)
    record("scales", {"turns": options.turns, "steps": _STEPS, "past": _PAST, "prompt": _PROMPT}, figures)


def _pack(folder: Path) -> BasePack:
    make_checkpoint(folder / "checkpoint", CONFIGS["135M"])
    make_pack(str(folder / "checkpoint"), folder / "pack", Quantization(block_size=32))
    return open_pack(folder / "pack")


def _compared(base: BasePack, profile: Profile, turns: int) -> dict[str, float]:
    factors = _adapter(base, scales=False)
    cases: dict[str, tuple[bool, Adapter | None]] = {
        "plain": (False, None), "again": (False, None), "idle": (True, None), "lora": (False, factors),
        "used": (True, _adapter(base, scales=True)),
    }  # fmt: skip
    if profile == "kernel":
        del cases["plain"], cases["again"], cases["idle"]  # one graph, which without an adapter does the same
    graphs = {takes: _Graph(base, profile, takes_scales=takes) for takes in (False, True)}
    seconds: dict[tuple[str, str], list[float]] = {}
    generator = np.random.default_rng(1)
    with ExitStack() as stack:
        runs = {
            case: graphs[takes].bound(stack.enter_context(_feeds(base, profile, adapter, takes_scales=takes)))
            for case, (takes, adapter) in cases.items()
        }
        for turn in range(turns + 1):
            for case in generator.permutation(list(cases)):
                for what, tokens in [("step", 1)] * _STEPS + [("prompt", _PROMPT)] * (turn % 4 == 0):
                    began = time.process_time()
                    runs[case](tokens)
                    if turn:
                        seconds.setdefault((case, what), []).append(time.process_time() - began)
    figures = {}
    for case, over in (("again", "plain"), ("idle", "plain"), ("used", "lora")):
        for what in ("step", "prompt"):
            if case in cases:
                mine, theirs = (float(np.quantile(seconds[each, what], 0.1)) for each in (case, over))
                print(f"{profile:7} {what:7} {case} x{mine / theirs:.3f} of {over}, {theirs * 1e3:.2f} ms", flush=True)
                figures[f"times_{profile}_{what}_{case}"] = round(mine / theirs, 3)
    return figures


class _Graph:
    """A graph of one sequence, in a session with its buffers."""

    def __init__(self, base: BasePack, profile: Profile, *, takes_scales: bool) -> None:
        self._shape, self._by_rows = base.shape, profile in ROW_PROFILES
        path = base.directory / f"{profile}-{takes_scales}.onnx"
        ir.save(build_graph(base, profile, INT8_ACCURACY, takes_scales=takes_scales), path)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        if profile == "kernel":
            options.register_custom_ops_library(str(row_lora().library))
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        size = (1, self._shape.num_kv_heads, _PAST + _PROMPT, self._shape.head_dim)
        self._cache = {
            f"{layer}.{kind}": ort.OrtValue.ortvalue_from_numpy(np.zeros(size, np.float32))
            for layer in range(self._shape.num_layers)
            for kind in ("key", "value")
        }
        self._scores = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, self._shape.vocab_size), np.float32))

    def bound(self, adapter_inputs: Arrays) -> Callable[[int], None]:
        """What runs so many tokens with the adapter whose inputs these are."""
        binding = self._session.io_binding()
        for name, buffer in self._cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        binding.bind_ortvalue_output("logits", self._scores)
        # An OrtValue does not own its memory.
        kept = {**adapter_inputs, **({} if self._by_rows else {"logits_to_keep": np.ones(1, np.int64)})}
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))

        def run(tokens: int, *, kept: Arrays = kept) -> None:
            total = _PAST + tokens
            feeds: dict[str, NDArray[Any]] = {"input_ids": np.ones((1, tokens), np.int64)}
            if self._by_rows:
                feeds |= {"lengths": np.array([total], np.int32), "new_tokens": np.array([tokens], np.int32)}
            else:
                feeds["attention_mask"] = np.ones((1, total), np.int64)
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
            self._session.run_with_iobinding(binding)

        return run


@contextmanager
def _feeds(base: BasePack, profile: Profile, adapter: Adapter | None, *, takes_scales: bool) -> Iterator[Arrays]:
    if profile == "kernel":
        with numbered(base, [adapter]) as adapter_inputs:
            yield adapter_inputs
    else:
        yield adapter_feeds(base, profile, [adapter], takes_scales=takes_scales)


def _adapter(base: BasePack, *, scales: bool) -> Adapter:
    """Rank 8 on all modules; with numbers near 1 that scale each, as of DoRA."""
    generator, modules = np.random.default_rng(2), base.model.linear_modules()
    config = LoraConfig(rank=8, alpha=8.0)
    pairs = {
        module: LoraPair(*(generator.normal(0, 0.01, size).astype(np.float32) for size in ((8, columns), (rows, 8))))
        for module, (rows, columns) in modules.items()
    }
    shapes = scale_shapes(base.model) if scales else {}
    extras = {name: generator.uniform(0.9, 1.1, shape).astype(np.float32) for name, shape in shapes.items()}
    return Adapter(config, pairs, extras=extras)


if __name__ == "__main__":
    main()
