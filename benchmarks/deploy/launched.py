"""Run the program of this name that comes next on the path, and append what it took to $LAUNCHES as a line of JSON.

Flower starts `flwr-clientapp` for each message. Here it finds a file of that name that runs this one: seconds are those of
the whole process, from its start to its end. Nothing but the standard library: this process should cost nothing.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

name = Path(sys.argv[1])
path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != name.parent)
program = shutil.which(name.name, path=path)
assert program, f"there is no {sys.argv[1]} on {path}"


def cpu_s(pid: str) -> float:
    """Of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


others = os.environ.get("WORKS_FOR", "").split()  # processes that do this device's work: its trainer, its warm app
before = sum(map(cpu_s, others))
began, started = time.time(), time.perf_counter()
child = os.posix_spawn(program, [program, *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(child, 0)
wall_s = time.perf_counter() - started
time.sleep(0.2 if others else 0.0)  # until a child that has said its last word has ended
line = {
    "began": began, "wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime + sum(map(cpu_s, others)) - before,
    "peak_mb": usage.ru_maxrss * 1024 / 1e6,
}  # fmt: skip
with Path(os.environ["LAUNCHES"]).open("a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\n")
sys.exit(os.waitstatus_to_exitcode(status))
