"""A fleet for many rounds, with faults drawn with a seed, beside the same run without any: python -m tests.faults.soak

Every device takes part in every round (server.min_devices is their number), so the method's result is one and the same,
whatever was killed: a round that loses an answer is given up at its deadline and done again. The report goes to --out; the
last line on standard output is one JSON object. Exit status 1 where a round was lost, the adapter is another one, or memory
grew by more than a tenth after round 10.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.faulty_proxy import FaultyProxy
from tests.faults.fleets import Fleet, free_port
from tests.tiny.checkpoints import tiny_pack, write_checkpoint

SERVER = {"ServerApp": "flwr-serverapp", "superexec": "flower-superexec", "SuperLink": "flower-superlink"}
DEVICE = {"trainer": "supervision.trainer", "link": "flower-supernode", "warm app": "supervision.warm_app"}
KINDS = (*SERVER, "server", "trainer", "link", "device", "network")
SHARE_OF_ROUNDS, SHARE_OF_REQUESTS = 0.5, 0.2
SETTLED = 10  # rounds after which memory is compared
MOST_GROWTH = 0.1  # of a role's memory, from then to the end
_LOOK_S = 0.2


@dataclass
class Seen:
    """What a run was like."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 1  # of the server, by whoever keeps it running
    digest: str = ""
    rounds: int = 0
    answers: int = 0  # sound ones, of all rounds
    memory_mb: list[dict[str, float]] = field(default_factory=list)  # by role, one a round
    database_mb: float = 0.0  # of SuperLink, at the end

    def growth(self) -> dict[str, tuple[float, float]]:
        """(MB after round 10, MB at the end) of each role, each a mean over up to 5 rounds; empty for short runs."""
        kept = self.memory_mb[SETTLED:] if len(self.memory_mb) > SETTLED + 1 else []
        few = max(1, min(5, len(kept) // 2))
        roles = {role for one in kept for role in one}
        told = {role: [one[role] for one in kept if role in one] for role in sorted(roles)}
        return {r: (sum(v[:few]) / len(v[:few]), sum(v[-few:]) / len(v[-few:])) for r, v in told.items() if v}

    def grown(self) -> list[str]:
        """The roles whose memory is not flat."""
        return [role for role, (then, now) in self.growth().items() if now > (1 + MOST_GROWTH) * then]


def soak(fleet: Fleet, network: FaultyProxy, rounds: int, faults: dict[int, str], draw: random.Random) -> Seen:
    """One run of so many rounds; `faults` says what is done in which."""
    seen, began, left, seen_rounds = Seen(), time.monotonic(), dict(faults), 0
    fleet.begin(server__rounds=rounds)
    assert fleet.server is not None
    while fleet.server.is_alive or fleet.server.wait():
        if not fleet.server.is_alive:  # as a unit does
            seen.starts += 1
            assert seen.starts < 3 * rounds, fleet.said()
            fleet.start_server()
        committed = fleet.committed
        if committed > seen_rounds:
            network.share = 0.0
            seen_rounds = committed
            seen.memory_mb.append(memory_mb(fleet))
        kind = left.get(committed + 1)
        if kind and any(fleet.trains(name, committed + 1) for name in fleet.names):
            del left[committed + 1]
            seen.faults[kind] += 1
            _do(kind, fleet, network, draw)
        time.sleep(_LOOK_S)
    lines = fleet.rounds()
    seen.seconds, seen.digest, seen.rounds = time.monotonic() - began, fleet.digest(), len(lines)
    seen.answers = sum(line["replies"] for line in lines)
    seen.database_mb = sum(path.stat().st_size for path in (fleet.folder / "fleet").glob("superlink.db*")) / 1e6
    return seen


def _do(kind: str, fleet: Fleet, network: FaultyProxy, draw: random.Random) -> None:
    name = draw.choice(fleet.names)
    assert fleet.server is not None
    with suppress(psutil.Error, ProcessLookupError):
        if kind in SERVER:
            for one in fleet.server_part(SERVER[kind])[:1]:
                one.kill()
        elif kind == "server":
            fleet.server.kill()
        elif kind == "trainer":
            psutil.Process(fleet.status(name)["pid"]).kill()
        elif kind == "link":
            for one in fleet.devices[name].children("flower-supernode"):
                one.kill()
        elif kind == "device":
            fleet.devices[name].kill()
            fleet.start_device(name)
        else:
            network.share = SHARE_OF_REQUESTS


def memory_mb(fleet: Fleet) -> dict[str, float]:
    """Resident memory by role; that of devices is a mean over them."""
    found: dict[str, list[float]] = {}
    parts = [(fleet.server_part(""), SERVER), *((device.children(), DEVICE) for device in fleet.devices.values())]
    for processes, roles in parts:
        for role, command in roles.items():
            with suppress(psutil.Error):
                of_the_role = [one for one in processes if command in " ".join(one.cmdline())]
                found.setdefault(role, []).extend(one.memory_info().rss / 1e6 for one in of_the_role[:1])
    for process in fleet.devices.values():
        with suppress(psutil.Error):
            found.setdefault("device run", []).append(psutil.Process(process.pid).memory_info().rss / 1e6)
    return {role: sum(values) / len(values) for role, values in found.items() if values}


def report(arguments: argparse.Namespace, plain: Seen, faulty: Seen) -> str:
    """docs/soak.md"""
    command = (
        f"python -m tests.faults.soak --devices {arguments.devices} --rounds {arguments.rounds} --seed {arguments.seed}"
    )
    cores, load = os.cpu_count(), os.getloadavg()[1]
    rows = [
        f"| {role} | {' | '.join(_mb(seen.growth().get(role)) for seen in (plain, faulty))} |"
        for role in sorted({*plain.growth(), *faulty.growth()})
    ]
    same = "the same" if plain.digest == faulty.digest else "ANOTHER"
    lines = [
        "# A soak: many rounds, faults drawn with a seed",
        "",
        f"    {command} --out docs/soak.md",
        "",
        f"{arguments.devices} devices and their server, all as real processes on one machine of {cores} cores",
        f"(load {load:.1f}), over TLS; a base whose training is seconds; method `svd`. First a run to which nothing",
        f"happens, then the same run, where with the seed {arguments.seed} a fault was drawn for about every second round.",
        "",
        "| | nothing happens | faults |",
        "|---|---|---|",
        *(
            f"| {what} | {one} | {two} |"
            for what, one, two in (
                ("rounds committed", f"{plain.rounds} of {arguments.rounds}", f"{faulty.rounds} of {arguments.rounds}"),
                ("sound answers", plain.answers, faulty.answers),
                ("faults", 0, sum(faulty.faults.values())),
                ("starts of `fedlora server run`", plain.starts, faulty.starts),
                (
                    "seconds a round",
                    f"{plain.seconds / arguments.rounds:.1f}",
                    f"{faulty.seconds / arguments.rounds:.1f}",
                ),
                ("adapter", f"`{plain.digest:.16}`", f"`{faulty.digest:.16}`, {same}"),
                ("SuperLink's database at the end, MB", f"{plain.database_mb:.1f}", f"{faulty.database_mb:.1f}"),
            )
        ),
        "",
        "Faults: " + (", ".join(f"{count} {kind}" for kind, count in sorted(faulty.faults.items())) or "none") + ".",
        "SIGKILL of the ServerApp, superexec, SuperLink, all of the server, a trainer, a link, all of a device;",
        f"`network`: of the requests of a round, {SHARE_OF_REQUESTS:.0%} are reset, late or cut.",
        "",
    ]
    if rows:
        lines += [
            f"Memory, MB: after round {SETTLED} and at the end, each a mean over up to 5 rounds, and over the devices.",
            f"What grew by more than {MOST_GROWTH:.0%}: {', '.join([*plain.grown(), *faulty.grown()]) or 'nothing'}.",
            "",
            "| | nothing happens | faults |",
            "|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(lines)


def _mb(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.0f} → {pair[1]:.0f} ({pair[1] / pair[0] - 1:+.0%})" if pair else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--timeout-s", type=float, default=240.0, help="of a round; one that lost an answer waits for it"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    faults = {n: draw.choice(KINDS) for n in range(1, arguments.rounds + 1) if draw.random() < SHARE_OF_ROUNDS}
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_pack(Path(folder) / "pack", write_checkpoint(Path(folder) / "checkpoint"))
        superlink = free_port()
        network = FaultyProxy(superlink)
        network.seed(arguments.seed)
        names = tuple(f"device-{n}" for n in range(1, arguments.devices + 1))
        more = {"server.min_devices": len(names), "server.round_timeout_s": arguments.timeout_s, "train.steps": 100}
        fleet = Fleet(base, names, port=network.port, listen_port=superlink, **more)
        try:
            plain = soak(fleet, network, arguments.rounds, {}, draw)
            print(f"undisturbed: {plain.rounds} rounds, {plain.seconds:.0f} s", flush=True)
            faulty = soak(fleet, network, arguments.rounds, faults, draw)
        finally:
            fleet.end()
            network.close()
    if arguments.out:
        arguments.out.write_text(report(arguments, plain, faulty), encoding="utf-8")
    told: dict[str, Any] = {name: _plain(seen) for name, seen in (("undisturbed", plain), ("faulty", faulty))}
    print(json.dumps(told))
    lost = any(seen.rounds != arguments.rounds for seen in (plain, faulty))
    sys.exit(bool(lost or plain.digest != faulty.digest or plain.grown() or faulty.grown()))


def _plain(seen: Seen) -> dict[str, Any]:
    return {
        "seconds": round(seen.seconds, 1), "rounds": seen.rounds, "answers": seen.answers, "starts": seen.starts,
        "faults": dict(seen.faults), "digest": seen.digest, "growth_mb": seen.growth(), "grown": seen.grown(),
        "database_mb": round(seen.database_mb, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
