"""What does a round cost a device beside training: with a device service and its courier, and with a plain ClientApp?

    python benchmarks/bench_deploy.py [--rounds 3] [--blocks 1] [--devices 4]

A fleet on this machine with the shape of a 135M model: `fedlora server run` with its SuperLink, and a SuperNode for each
device, over TLS on loopback. Devices are of two kinds, which take turns, a block of rounds each: a plain one, whose
ClientApp opens the base itself in the process that Flower starts for the message, and one whose ClientApp is a courier to a
device service. Seconds are those of that process from its start to its end, less the steps of training; what the app takes
of them is told apart from Flower's own. Seconds of the processor are those of all of the device's processes that work for
the message, the service too, less the same: on a machine that others use, they are the surer ones. Bytes are counted on the
port between all devices and the server, with whatever Flower says in between. Medians over devices and rounds, for
two adapters: `all-linear` of rank 16, the default, 19.5 MB in float32, and `attention`, q and v of rank 8, 1.8 MB.

The last line is one JSON object. device_overhead_ratio is seconds of the plain device over the courier's, for the default
adapter, device_cpu_ratio the same of the processor, with `_attention` those of the smaller one; bytes_over_payload is the
highest of the courier's; async_commit_slowdown is that of `bench_async.py`; order_free_cost is that of `bench_order.py`
for ten clients of the 135M shape.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.base.pack import open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora_server.run.device_costs import COST_UNITS

import bench_async
import bench_order
from aggregate.clients import SHAPES, Clients
from deploy.figures import Overhead, bytes_over_payload, median_costs_over_devices, medians, overheads
from deploy.fleet import Block, Fleet, Kind
from harness.checkpoints import CONFIGS, make_checkpoint
from harness.record import record

KINDS: tuple[Kind, ...] = ("plain", "courier")
SHAPE, STEPS, TEXTS = "135M", 2, ("argparse", "typing", "subprocess", "inspect", "tarfile", "doctest", "pdb", "enum")
SETTINGS = (
    f"train.steps={STEPS}", "train.batch_size=1", "train.sequence_length=64", "server.evaluate=false",
    "server.method=fedavg", "server.round_timeout_s=600",
)  # fmt: skip
ADAPTERS = {"all-linear": (), "attention": ("lora.rank=8", "lora.target_modules=q_proj,v_proj")}
ASYNC_STEP_S = 1.0  # long beside what a busy machine adds
LONGEST_S = 900.0  # of a block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of a block  [default: 3]")
    parser.add_argument("--blocks", type=int, default=1, help="of each kind and adapter  [default: 1]")
    parser.add_argument("--devices", type=int, default=4, choices=range(1, len(TEXTS) + 1), help="[default: 4]")
    options = parser.parse_args()
    # A socket's path is short, whatever TMPDIR says.
    with tempfile.TemporaryDirectory(prefix="fleet-", dir="/tmp") as folder:  # nosec B108
        figures = fleet_figures(Path(folder), options.rounds, options.blocks, options.devices)
    base = open_pack("nano")
    alike, straggling = (
        bench_async.measured(base, "async", slowest, ASYNC_STEP_S, 8)[0] for slowest in (1, bench_async.TIMES_SLOWER)
    )
    figures |= {
        "async_commit_slowdown": round(straggling / alike, 3),
        "order_free_cost": round(order_free_cost(), 3),
    }
    record("deploy", {**vars(options), "shape": SHAPE, "settings": SETTINGS, "adapters": ADAPTERS}, figures)


def fleet_figures(folder: Path, rounds: int, blocks: int, devices: int) -> dict[str, float]:
    """A table of both kinds of devices with each adapter, and the figures of the last line that come from it."""
    fleet = Fleet(folder, made_pack(folder), texts(folder, devices), SETTINGS)
    figures, bytes_ratios = dict[str, float](), []
    print(
        "| adapter | device | outside training, s | Flower's process | the app | processor, s | bytes / payload | ",
        end="",
    )
    print(" | ".join(COST_UNITS.values()), "|\n|---|---|", "--:|" * (5 + len(COST_UNITS)), sep="", flush=True)
    try:
        for adapter, settings in ADAPTERS.items():
            rows = {kind: Row() for kind in KINDS}
            for _ in range(blocks):
                for kind in KINDS:
                    rows[kind].add(fleet.rounds(kind, rounds, settings, LONGEST_S))
            for kind in KINDS:
                print("|", " | ".join([adapter, kind, *rows[kind].cells()]), "|", flush=True)
            bytes_ratios.append(rows["courier"].bytes_ratio)
            plain, courier = (rows[kind].seconds for kind in KINDS)
            name = "" if adapter == "all-linear" else f"_{adapter}"
            figures |= {
                f"device_overhead_ratio{name}": round(plain["whole_s"] / courier["whole_s"], 2),
                f"device_cpu_ratio{name}": round(plain["cpu_s"] / courier["cpu_s"], 2),
            }
    finally:
        fleet.close()
    return figures | {"bytes_over_payload": round(max(bytes_ratios), 4)}


@dataclass(slots=True)
class Row:
    """What blocks of one kind and adapter took."""

    overheads: list[Overhead] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    wire_bytes: int = 0

    def add(self, block: Block) -> None:
        self.overheads += overheads(block.records, block.launches, STEPS)
        self.records += block.records
        self.wire_bytes += block.wire_bytes

    @property
    def seconds(self) -> dict[str, float]:
        return medians(self.overheads)

    @property
    def bytes_ratio(self) -> float:
        return bytes_over_payload(self.records, self.wire_bytes)

    def cells(self) -> list[str]:
        costs = median_costs_over_devices(self.records)
        told = [f"{costs[name]:.4g}" if name in costs else "-" for name in COST_UNITS]
        return [*(f"{value:.2f}" for value in self.seconds.values()), f"{self.bytes_ratio:.4f}", *told]


def order_free_cost() -> float:
    """Seconds of a round's aggregation over those of one whose sums are float32."""
    shape = next(shape for shape in SHAPES if shape.name == SHAPE)
    return bench_order.order_free_cost(Clients(shape, shape.layers)).ratio


def made_pack(folder: Path) -> Path:
    """A pack of random weights with the tokenizer of nano: devices read text."""
    checkpoint, pack = folder / "checkpoint", folder / "pack"
    make_checkpoint(checkpoint, CONFIGS[SHAPE])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(open_pack("nano").directory / name, checkpoint / name)
    make_pack(checkpoint, pack, Quantization())
    shutil.rmtree(checkpoint)
    return pack


def texts(folder: Path, devices: int) -> list[Path]:
    """A file of Python's own for each device."""
    library = Path(argparse.__file__).parent
    found = []
    for name in TEXTS[:devices]:
        found.append(folder / f"{name}.txt")
        shutil.copy(library / f"{name}.py", found[-1])
    return found


if __name__ == "__main__":
    main()
