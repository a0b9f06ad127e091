"""What do signatures cost?

    python benchmarks/bench_trust.py                 # fedlora-nano
    python benchmarks/bench_trust.py --size 135M --played 10 --turns 1    # makes a base of that size first

A round of a fleet that signs: at each device, an instruction is verified and an answer signed; at the server, for 100
devices, each instruction is signed and each answer verified, and the round's record is made, signed and written. Digests of
the adapter and of the updates are in both. Beside it, what the round takes without: 20 steps of 8 x 128 tokens on a device,
and the server's work on 100 updates of rank 16, in the mean over three rounds: keys are written down in the first. Seconds
of the processor, so that other work on the machine counts little; those of a step over the cores. Medians over the turns.

`round_cost` is what signing adds to a round, as a share of it: a device's own part and all of the server's, over the
device's training and the server's work.

Then releases. `verify_ms`: a release of a 135M adapter of rank 16, signatures, manifest and files, less the time in which
its files are hashed; of the processor. `update_s`: `fedlora update` over loopback, from asking until the version is in use,
with a canary of one text in a process of its own, and no service to be watched. `failed_requests`: 200 clients ask a
service without a pause while its adapter is swapped five times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora.base.pack import EMBEDDED, BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.config.run import DataConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.threads import cores
from fedlora_client.device import Device

from harness.checkpoints import CONFIGS, make_checkpoint
from harness.record import record
from trust.signed_round import Spent, played
from trust.updating import given_out, swap_under_load, update_seconds
from trust.verifying import verify_ms

STEPS, RANK, ROUNDS = 20, 16, 3
_UPDATES = 3


@dataclass(frozen=True)
class RoundCost:
    """Seconds that a round takes, and what of them signing is."""

    train_s: float  # of a device
    server_s: float  # of all its devices' updates, without signing
    device_signing_s: float
    server_signing_s: float  # for all its devices
    record_s: float  # of the round's records, for however many devices

    def with_devices(self, times: float) -> RoundCost:
        """With so many times the devices: the server's work follows their number."""
        return replace(self, server_s=times * self.server_s, server_signing_s=times * self.server_signing_s)

    @property
    def share(self) -> float:
        """What signing adds, of a round without it."""
        return (self.device_signing_s + self.server_signing_s + self.record_s) / (self.train_s + self.server_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("nano", *CONFIGS), default="nano", help="of the base")
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--played", type=int, default=0, help="devices that are played, whose cost is scaled; 0: all")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are timed, of a device's 20")
    parser.add_argument("--clients", type=int, default=200, help="that ask while adapters are swapped")
    parser.add_argument("--swaps", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = _base(options.size, Path(folder))
        played_devices = options.played or options.devices
        cost = _round_cost(base, Path(folder), played_devices, options.turns, options.steps)
        cost = cost.with_devices(options.devices / played_devices)
    _print_round(cost, options.size, options.devices)
    figures = {"round_cost": round(cost.share, 5)} | _releases(options.size, options.clients, options.swaps)
    record("trust", vars(options), figures)


def _releases(size: str, clients: int, swaps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        verified = verify_ms(Path(folder) / "release", RANK, repeats=15)
        print(
            f"verify a release of 135M, rank {RANK}, {verified['size_mb']:.1f} MB: {verified['whole_ms']:.1f} ms, of these "
            f"{verified['hashing_ms']:.1f} ms hashing"
        )
        base = _base(size, Path(folder))
        with given_out(Path(folder), base, RANK) as fleet:
            seconds = update_seconds(fleet, repeats=_UPDATES)
            print(f"an update of {size}, rank {RANK}: {seconds:.2f} s")
            asked = swap_under_load(fleet, _UPDATES + 1, swaps, clients)
        print(f"{clients} clients, {swaps} swaps: {asked.requests} requests, {asked.failed} failed, {asked.versions}")
    return {
        "verify_ms": round(verified["verify_ms"], 2), "update_s": round(seconds, 3), "failed_requests": asked.failed,
    }  # fmt: skip


def _round_cost(base: BasePack, folder: Path, devices: int, turns: int, steps: int) -> RoundCost:
    train_s = STEPS * _step_s(base, folder, steps)
    config = RunConfig(
        base=str(base.directory), lora=LoraSection(rank=RANK),
        server=ServerConfig(rounds=ROUNDS, evaluate=False, min_devices=devices, round_timeout_s=3600.0),
    )  # fmt: skip
    plain: list[Spent] = []
    signed: list[Spent] = []
    for turn in range(turns):
        for is_signed, spent in ((False, plain), (True, signed)):
            place = folder / f"{turn}-{is_signed}"
            place.mkdir()
            spent.append(played(base, config, devices, place, is_signed=is_signed))
    return RoundCost(
        train_s=train_s,
        server_s=statistics.median((each.server_s - each.record_s) / ROUNDS for each in plain),
        device_signing_s=statistics.median(statistics.median(each.device_s) for each in signed),
        server_signing_s=statistics.median(each.signing_s / ROUNDS for each in signed),
        record_s=statistics.median(each.record_s / ROUNDS for each in signed),
    )


def _step_s(base: BasePack, folder: Path, steps: int) -> float:
    """Of a step of training, the first left out: of the processor, over the cores, as it takes on an idle machine."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"Line {number} of what a device has to learn from." for number in range(4000)))
    config = RunConfig(
        base=str(base.directory), data=DataConfig(name="files"), lora=LoraSection(rank=RANK),
        train=TrainConfig(steps=steps + 1, batch_size=8, sequence_length=128),
    )  # fmt: skip
    device = Device(config, {"name": "a", "base": str(base.directory), "data-path": str(text)})
    result = device.train(device.first_adapter(), 1)
    return statistics.median(result.step_cpu_seconds[1:]) / cores()


def _base(size: str, folder: Path) -> BasePack:
    if size == "nano":
        return open_pack(EMBEDDED)
    make_checkpoint(folder / "checkpoint", CONFIGS[size])
    make_pack(folder / "checkpoint", folder / "pack", Quantization(bits=4))
    return open_pack(folder / "pack")


def _print_round(cost: RoundCost, size: str, devices: int) -> None:
    print(f"a round of {size}, rank {RANK}, {devices} devices, {STEPS} steps each")
    print(f"{'':40}{'without':>12}{'signing adds':>14}{'share':>8}")
    rows = (
        ("a device, ms", cost.train_s * 1e3, cost.device_signing_s * 1e3),
        (f"the server, for {devices} devices, ms", cost.server_s * 1e3, cost.server_signing_s * 1e3),
        ("the server, for each device, ms", cost.server_s / devices * 1e3, cost.server_signing_s / devices * 1e3),
        ("the server, the records, ms", cost.server_s * 1e3, cost.record_s * 1e3),
        ("the round, ms", (cost.train_s + cost.server_s) * 1e3, cost.share * (cost.train_s + cost.server_s) * 1e3),
    )
    for name, plain, more in rows:
        print(f"{name:40}{plain:12.1f}{more:14.2f}{more / plain:8.2%}")


if __name__ == "__main__":
    main()
