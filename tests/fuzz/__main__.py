"""`python -m tests.fuzz`: every reader of files and messages, with what goes too far, for a while.

Each finding is a folder with what was read, and `finding.json`, which says by whom and what came of it;
`python -m tests.fuzz --again FOLDER` reads it once more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.child import COUNTS, FINDING, MOST_CPU_S, MOST_WALL_S, NOW, read_once
from tests.fuzz.readers import READERS

PROJECT = Path(__file__).resolve().parents[2]
_SIGNALS = {14: f"more than {MOST_WALL_S:g} s", 27: f"more than {MOST_CPU_S:g} s of processor time"}


@dataclass(slots=True)
class Tally:
    """What came of a run."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in READERS})
    findings: list[Path] = field(default_factory=list)


def fuzz(
    seconds: float, output: Path, *, names: Sequence[str] = tuple(READERS), seed: int = 1, turn_s: float = 20.0
) -> Tally:
    """All readers in turn for so long; findings lie below `output`."""
    tally, end = Tally(), time.monotonic() + seconds
    for number in itertools.count(seed):
        for name in names:
            left = end - time.monotonic()
            if left <= 0:
                return tally
            _turn(name, min(turn_s, left), number, output, tally)
    raise AssertionError("there is no last number")


def child_command(name: str, seconds: float, seed: int, place: Path) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.child", name, f"{seconds}", f"{seed}", str(place)]


def _turn(name: str, seconds: float, seed: int, output: Path, tally: Tally) -> None:
    with tempfile.TemporaryDirectory(prefix="fedlora-fuzz-") as folder:
        place = Path(folder)
        done = subprocess.run(
            child_command(name, seconds, seed, place), cwd=PROJECT, capture_output=True, text=True, check=False
        )
        if (place / COUNTS).is_file():
            tally.counts[name].update(json.loads((place / COUNTS).read_text(encoding="utf-8")))
        found = [path.parent for path in place.glob(f"*/{FINDING}") if path.parent.name != NOW]
        if done.returncode:
            why = _SIGNALS.get(-done.returncode, f"the process ended with {done.returncode}")
            tally.counts[name][why] += 1
            now = place / NOW
            now.mkdir(exist_ok=True)
            told = (
                json.loads((now / FINDING).read_text(encoding="utf-8"))
                if (now / FINDING).exists()
                else {"reader": name}
            )
            (now / FINDING).write_text(
                json.dumps({**told, "why": f"{why}\n{done.stderr[-3000:]}"}, indent=2), encoding="utf-8"
            )
            found.append(now)
        for each in found:
            target = output / f"{name.replace(' ', '-').replace(',', '')}-{seed}-{each.name}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(each, target, symlinks=True)
            tally.findings.append(target)


def again(finding: Path) -> str:
    """Read what a finding holds once more, in this process; what came of it."""
    told = json.loads((finding / FINDING).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="fedlora-fuzz-") as folder:
        reader = READERS[told["reader"]](Path(folder))
        return read_once(reader, finding / "input", told["file"]) or "taken"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"))
    parser.add_argument(
        "--reader", action="append", choices=list(READERS), help="this one alone; may come several times"
    )
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="read a finding once more")
    asked = parser.parse_args()
    if asked.again:
        print(again(asked.again))
        return
    tally = fuzz(asked.minutes * 60, asked.output, names=asked.reader or tuple(READERS), seed=asked.seed)
    for name, counts in tally.counts.items():
        others = counts.total() - counts["taken"] - counts["refused"]
        told = f"{counts['taken']:8} taken, {counts['refused']:8} refused, {others} otherwise"
        print(f"{name:20} {counts.total():8} read, {told}")
    for finding in tally.findings:
        print(f"python -m tests.fuzz --again {finding}")
    print(f"{sum(counts.total() for counts in tally.counts.values())} read, {len(tally.findings)} findings")
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
