"""The process that reads: some seconds of one reader, one changed folder after another.

It has a limit of memory above what it begins with, and timers around each reading that nobody handles: what passes one ends
it, and the folder that it was reading tells why. What it takes, refuses and finds stands in counts.json.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError

from tests.fuzz.formats import changed
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS

MOST_CPU_S, MOST_WALL_S = 20.0, 180.0  # of one reading, past which the process ends
GROWN_BYTES = 256 << 20  # of one reading, past which it is a finding
MORE_MEMORY_BYTES = 2 << 30
FINDING, COUNTS, NOW = "finding.json", "counts.json", "now"
_failed_threads: list[str] = []


def read_for(name: str, seconds: float, seed: int, place: Path) -> None:
    """Change and read for so long; `place` is an empty folder."""
    reader = READERS[name](place / "made")
    read_once(reader, reader.folder, reader.names[0])  # what is loaded once is no part of a reading
    counts: Counter[str] = Counter()
    _limit_memory()
    end, chance, known = time.monotonic() + seconds, random.Random(seed), set[str]()
    now = place / NOW
    while time.monotonic() < end:
        shutil.rmtree(now, ignore_errors=True)
        file = change(reader, now / "input", chance)
        (now / FINDING).write_text(json.dumps({"reader": name, "file": file}), encoding="utf-8")
        why = read_once(reader, now / "input", file)
        counts[why.split(":", 1)[0] if why else "taken"] += 1
        if why and not why.startswith("refused"):
            where = f"{zlib.crc32(_without_numbers(why).encode()):08x}"
            if where not in known:  # one of each is enough
                known.add(where)
                _keep(now, place / f"{where}-{counts.total()}", why)
        (place / COUNTS).write_text(json.dumps(counts), encoding="utf-8")


def read_once(reader: Reader, folder: Path, file: str) -> str:
    """Empty where the reader took the folder; "refused" where it did so with an error of ours; else what happened."""
    before, grown = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    signal.setitimer(signal.ITIMER_REAL, MOST_WALL_S)
    told = ""
    try:
        reader.read(folder, file)
    except FedloraError as error:
        told = "refused" if "\n" not in str(error) else f"a refusal of several lines: {str(error)!r:.300}"
    except BaseException as error:  # a panic of a library is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        told = "".join(traceback.format_exception(error))
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if _failed_threads:
        return _failed_threads.pop()
    if told not in ("", "refused"):
        return told
    if (took := time.process_time() - before) > reader.slow_s:
        return f"slow: {took:.1f} s of processor time"
    if (more := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024) > GROWN_BYTES:
        return f"large: {more / 1e6:.0f} MB more"
    return told


def change(reader: Reader, folder: Path, chance: random.Random) -> str:
    """Copy the sound folder and change one file of it, now and then two, or put something else in a file's place; the file
    that was changed last."""
    shutil.copytree(reader.folder, folder)
    files = sorted({chance.choice(reader.names) for _ in range(chance.choice((1, 1, 1, 2)))})
    for file in files:
        path = folder / file
        if chance.random() < 0.02 and not reader.are_messages:
            _replace(path, chance, folder / chance.choice(reader.names))
        elif path.is_file():
            path.write_bytes(changed(file, path.read_bytes(), chance, reader.names))
        if reader.sign and chance.random() < 0.9:
            reader.sign(folder, file)
    return files[-1]


def _replace(path: Path, chance: random.Random, other: Path) -> None:
    path.unlink(missing_ok=True)
    match chance.randrange(5):
        case 0:
            return
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(other)
        case 3:
            path.symlink_to(path)
        case _:
            path.write_bytes(b"")


def _keep(now: Path, finding: Path, why: str) -> None:
    if not finding.exists():
        shutil.copytree(now, finding, symlinks=True)
        told = json.loads((finding / FINDING).read_text(encoding="utf-8"))
        (finding / FINDING).write_text(json.dumps({**told, "why": why}, indent=2), encoding="utf-8")


def _without_numbers(why: str) -> str:
    """Where it happened, whatever the values were: the frames of our own files and the kind of error."""
    lines = [line.strip() for line in why.splitlines()]
    frames = [line for line in lines if line.startswith("File ") and "fedlora" in line]
    return "".join([*frames[-2:], lines[-1].split(":")[0]])


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _failed(arguments: Any) -> None:
    _failed_threads.append("".join(traceback.format_exception(arguments.exc_value)))


if __name__ == "__main__":
    threading.excepthook = _failed
    read_for(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
