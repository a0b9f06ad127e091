"""How much does one device that is ten times slower slow a commit: of rounds that wait, and of rounds that do not?

    python benchmarks/bench_async.py [--step-s 0.3] [--commits 12]

The server and the in-process grid of a simulation, with the base nano and a tiny adapter; four devices sleep instead of
training, one of them ten times as long where there is a straggler. Seconds per commit, the first one left out, and the
server's own seconds in it. The last line is one JSON object: async_commit_slowdown is seconds per commit with the straggler
over those without; at best 4 / 3.1, for three devices and a tenth send what four did.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack, open_pack
from fedlora.config.run import LoraSection, RunConfig, Scalar, ServerConfig
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.wire.update import decode_update, encode_update
from fedlora_server.rounds import Rounds
from fedlora_server.run.run_directory import open_run, read_metrics
from fedlora_simulations.grid import InProcessGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from harness.record import record

DEVICES, TIMES_SLOWER = 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-s", type=float, default=0.3, help="how long a device takes, in seconds")
    parser.add_argument("--commits", type=int, default=12)
    options = parser.parse_args()
    base, figures = open_pack("nano"), dict[str, float]()
    print("| rounds | without a straggler, s | with one, s | ratio | the server's own, s |")
    print("|---|--:|--:|--:|--:|")
    for mode in ("sync", "async"):
        taken = [measured(base, mode, slowest, options.step_s, options.commits) for slowest in (1, TIMES_SLOWER)]
        (alike, own), (straggling, _) = taken
        print(f"| {mode} | {alike:.2f} | {straggling:.2f} | {straggling / alike:.2f} | {own:.3f} |")
        figures |= {
            f"{mode}_s_per_commit": round(alike, 3),
            f"{mode}_s_per_commit_with_straggler": round(straggling, 3),
            f"{mode}_commit_slowdown": round(straggling / alike, 3),
        }
    record("async", {**vars(options), "devices": DEVICES, "times_slower": TIMES_SLOWER}, figures)


def measured(base: BasePack, mode: str, slowest: int, step_s: float, commits: int) -> tuple[float, float]:
    """Seconds per commit, and of these the server's own, where one device is `slowest` times slower than the others."""
    config = RunConfig(
        lora=LoraSection(rank=4, target_modules=("q_proj", "v_proj")),
        server=ServerConfig(rounds=commits, mode=mode, buffer_size=DEVICES, evaluate=False, round_timeout_s=120),
    )
    nodes: list[dict[str, Scalar]] = [
        {"name": f"device-{k}", "takes-s": step_s * (slowest if k == 0 else 1)} for k in range(DEVICES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        grid = InProcessGrid(sleeping(config, base), config.flat(), run_id=1, nodes=nodes, workers=DEVICES)
        with grid, open_run(output, config, base, "1") as directory:
            Rounds(grid, config, base).run(directory)
        records = read_metrics(output)[2:]
    return statistics.mean(r["seconds"] for r in records), statistics.mean(r["server_s"] for r in records)


def sleeping(config: RunConfig, base: BasePack) -> ClientApp:
    """Devices that sleep, and change each number a little."""
    app, first = ClientApp(), config.first_adapter(base)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        down = decode_update(message.content.array_records["update"]["update"].data, lambda: first)
        time.sleep(float(context.node_config["takes-s"]))
        name = str(context.node_config["name"])
        generator = np.random.default_rng([down.server_round, down.task.again, int(name[-1])])
        pairs = {
            module: LoraPair(pair.lora_A, pair.lora_B + generator.normal(0, 1e-3, pair.lora_B.shape).astype(np.float32))
            for module, pair in down.adapter.pairs.items()
        }
        adapter = Adapter(down.adapter.config, pairs)
        data = encode_update(replace(down, adapter=adapter, factors=down.task.sends, frozen=None, num_examples=10))
        array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
        content = RecordDict({"update": ArrayRecord({"update": array}), "device": ConfigRecord({"device": name})})
        return Message(content, reply_to=message)

    return app


if __name__ == "__main__":
    main()
