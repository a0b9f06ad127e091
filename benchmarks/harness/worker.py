"""The loop of a process that a benchmark asks for measurements: requests and answers are lines of JSON.

Peers' interpreters import it too: nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Bench(Protocol):
    """What measures; each of its methods takes plain values and returns what JSON can hold."""

    load_s: float


def answer_requests(load: Callable[[], Bench]) -> None:
    """Load what measures, tell what that took, and answer standard input to its end."""
    answers = os.fdopen(os.dup(1), "w")  # whatever else the engine prints goes elsewhere
    os.dup2(2, 1)
    bench = load()
    print(json.dumps({"load_s": bench.load_s, **resident_mb()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        result = getattr(bench, request.pop("do"))(**request)
        print(json.dumps(result), file=answers, flush=True)


def resident_mb() -> dict[str, float]:
    """What of this process is resident, and how much of that is no mapped file, which processes would share."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        key: int(fields[name].split()[0]) * 1024 / 1e6 for key, name in (("rss_mb", "VmRSS"), ("anon_mb", "RssAnon"))
    }
