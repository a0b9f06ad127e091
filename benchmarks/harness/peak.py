"""Run the command in argv, and print as the last line of standard output its seconds, peak memory and exit code.

A process inherits the peak of the one that started it; this one is small, so that what it tells is the command's own.
"""

import json
import os
import sys
import time

started = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - started
print(
    json.dumps(
        {"seconds": seconds, "peak_mb": usage.ru_maxrss * 1024 / 1e6, "exit_code": os.waitstatus_to_exitcode(status)}
    )
)
