"""What does a training step of each kind of adapter take, beside plain LoRA's?

    python benchmarks/bench_kinds.py                     # about 10 minutes
    python benchmarks/bench_kinds.py --layers 4 --turns 2

A step is forward, backward and AdamW on 256 tokens, over the shape of SmolLM2-135M with random weights at 4 bits, in one
thread, activations computed again; LoRA, DoRA and VeRA of rank 16 on all seven linear layers, IA3 where its paper has it.
The kinds take turns, so that all meet the same machine; seconds are of the processor, medians over the turns after the
first. `times_*` in the last line are those of a kind over plain LoRA's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization, dequantize
from fedlora.config.run import LoraSection, TrainConfig
from fedlora.lora.config import KINDS
from fedlora.lora.kinds import BY_NAME, new_adapter
from fedlora_client.data.windows import Windows
from fedlora_client.model import Model, open_model
from fedlora_client.ops.compute import choose_compute
from fedlora_client.training.planning import plan_training
from fedlora_client.training.training import Span, Training

from harness.checkpoints import CONFIGS, make_checkpoint
from harness.record import record

_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder), options.layers)
        trainings = {kind: _training(model, kind, options.turns + 1) for kind in KINDS}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(options.turns + 1):
            for kind, training in trainings.items():
                began = time.process_time()
                training.run_step()
                seconds[kind].append(time.process_time() - began)
    figures = {}
    for kind, own in seconds.items():
        median, plain = statistics.median(own[1:]), statistics.median(seconds["lora"][1:])
        print(f"{BY_NAME[kind].title:8}{median:8.2f} s a step, x{median / plain:.2f}")
        figures[f"times_{kind}"] = round(median / plain, 2)
    record("kinds", {"turns": options.turns, "layers": options.layers}, figures)


def _model(folder: Path, layers: int) -> Model:
    make_checkpoint(folder / "checkpoint", {**CONFIGS["135M"], "num_hidden_layers": layers})
    make_pack(str(folder / "checkpoint"), folder / "pack", Quantization(block_size=32))
    return open_model(open_pack(folder / "pack"), choose_compute("float32", device="cpu"))


def _training(model: Model, kind: str, steps: int) -> Training:
    base: BasePack = model.base
    config = TrainConfig(steps=steps, batch_size=1, sequence_length=_TOKENS, lr=1e-3, checkpointing="on")
    section = LoraSection(method=kind)
    adapter = new_adapter(
        section.lora(base.model.linear_modules()),
        base.model,
        lambda m: dequantize(base.matrix(m)),
        np.random.default_rng(2),
    )
    ids = np.random.default_rng(1).integers(0, base.model.vocab_size, (1, _TOKENS + 1))
    inputs, targets = (torch.from_numpy(part.copy()) for part in (ids[:, :-1], ids[:, 1:]))
    windows = Windows(inputs=inputs, targets=targets, starts=torch.zeros_like(inputs))
    plan = plan_training(model, [adapter], config)
    return Training(model, [adapter], [windows], config, [np.random.default_rng(3)], plan, Span(0, steps))


if __name__ == "__main__":
    main()
