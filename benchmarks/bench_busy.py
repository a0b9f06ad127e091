"""What do training and generation keep of their speed beside other work, waiting asleep or spinning?

    python benchmarks/bench_busy.py            # about 6 minutes

Training: fedlora-nano on README's own text in float32, batches of 8 x 128 tokens. Generation: one sequence after another
on nano's graph `compat`, greedy. Each runs beside 0, 1 and 2 processes that do nothing but work, with one thread, with as
many as there are cores that sleep while they wait (what fedlora chooses; ONNX Runtime's after 20 microseconds), and with as
many that spin (OMP_WAIT_POLICY=active, which the service and the engine heed as OpenMP does). A process for each, in turns,
so that all meet the same machine; tokens per second of the clock, medians over the turns.

The last line is one JSON object: `train_*` and `generate_*` are sleeping over spinning, `*_one_thread_*` sleeping over one
thread, with as many busy processes as the name ends in.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedlora.threads import cores

from harness.record import record

PROJECT = Path(__file__).resolve().parents[1]
_BUSY = (0, 1, 2)
_WAITING = {"one thread": ("1", "passive"), "sleeping": (str(cores()), "passive"), "spinning": (str(cores()), "active")}
_BOUND_S = 60  # of a busy process's life, whatever becomes of us
_STEPS, _TOKENS = 12, 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", choices=("train", "generate"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(_train() if options.worker == "train" else _generate(Path(options.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        subprocess.run([_fedlora(), "export", "nano", "-o", model], check=True, stdout=subprocess.DEVNULL)
        speeds = {(what, busy): _compared(what, busy, model, options.turns) for what in _WORK for busy in _BUSY}
    print(f"{'tokens per second':24}" + "".join(f"{name:>14}" for name in _WAITING))
    figures = {}
    for (what, busy), found in speeds.items():
        print(f"{what + f', {busy} busy':24}" + "".join(f"{found[name]:14.0f}" for name in _WAITING))
        figures[f"{what}_{busy}"] = round(found["sleeping"] / found["spinning"], 2)
        figures[f"{what}_one_thread_{busy}"] = round(found["sleeping"] / found["one thread"], 2)
    record("busy", {"turns": options.turns, "cores": cores()}, figures)


def _compared(what: str, busy: int, model: Path, turns: int) -> dict[str, float]:
    """{how its threads wait: tokens per second} beside `busy` processes."""
    spin = f"import time\nend = time.monotonic() + {_BOUND_S}\nwhile time.monotonic() < end: pass"
    found: dict[str, list[float]] = {name: [] for name in _WAITING}
    for _ in range(turns):
        for name, (threads, policy) in _WAITING.items():
            environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": policy}
            command = [sys.executable, __file__, "--worker", what, "--model", str(model)]
            others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(busy)]
            try:
                output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            found[name].append(float(output.split()[-1]))
    return {name: statistics.median(speeds) for name, speeds in found.items()}


def _train() -> float:
    """Tokens per second of the steps after the first."""
    import numpy as np
    from fedlora.config.run import DataConfig, RunConfig, TrainConfig
    from fedlora.lora.adapter import initial_adapter
    from fedlora.lora.config import LoraConfig
    from fedlora_client.device import Device
    from fedlora_client.training.trainer import Watcher, train

    config = RunConfig(
        data=DataConfig(name="files"), train=TrainConfig(steps=_STEPS, compute="float32", sequence_length=128)
    )
    device = Device(config, {"data-path": str(PROJECT / "README.md")})
    generator = np.random.default_rng(1)
    adapter = initial_adapter(LoraConfig(), device.model.shape.linear_modules(), generator)
    times: list[float] = []
    watcher = Watcher(on_step=lambda step, loss: times.append(time.perf_counter()))
    train(device.model, adapter, device.train_windows(), config.train, generator, watcher)
    return config.train.batch_size * config.train.sequence_length * (len(times) - 1) / (times[-1] - times[0])


def _generate(model: Path) -> float:
    """Tokens per second after the prompt."""
    from fedlora_serve.local.engine import Engine

    decoding = Engine(model, threads=int(os.environ["OMP_NUM_THREADS"])).start()
    token = int(decoding.step([1, 2, 3, 4]).argmax())
    began = time.perf_counter()
    for _ in range(_TOKENS):
        token = int(decoding.step([token]).argmax())
    return _TOKENS / (time.perf_counter() - began)


_WORK = ("train", "generate")


def _fedlora() -> str:
    return str(Path(sys.executable).with_name("fedlora"))


if __name__ == "__main__":
    main()
