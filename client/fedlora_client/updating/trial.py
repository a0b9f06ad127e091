"""Whether a version may stay: its canary before it is put into use, and the server's life after."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from fedlora.release.serving import is_served, read_served

_CANARY_S = 900.0
_MOST_TOLD = 500
_LOAD_S, _LOOK_S = 60.0, 0.1  # that a server may take to load a version
_FEDLORA = (sys.executable, "-c", "from fedlora.cli import main; main()")


def canary_fails(folder: Path, model: str, keys: tuple[Path, ...], *, timeout_s: float = _CANARY_S) -> str:
    """Why the canary of a release does not come out as it should; empty where it does.

    In a process of its own, by the engine that serves: what crashes it costs the release and nothing else.
    """
    trusted = [word for key in keys for word in ("--trust", str(key))]
    command = [*_FEDLORA, "canary", str(folder), "--model", model, *trusted, "--json"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its canary took more than {timeout_s:g} s"
    if done.returncode == 0:
        return ""
    try:
        return str(json.loads(done.stdout)["told"])[:_MOST_TOLD]
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip()[-_MOST_TOLD:]
        return f"its canary could not be tried (status {done.returncode}): {said}"


def server_fails(releases: Path, name: str, folder: str, watch_s: float, *, load_s: float = _LOAD_S) -> str:
    """Why the server does not live with a version in use; empty where it does, or where there is no server.

    It must load the version, and be the same process `watch_s` later.
    """
    if not is_served(releases):
        return ""
    place = releases / name
    until = time.monotonic() + load_s
    while True:
        served = read_served(place)
        if not is_served(releases):
            return "the server died as it loaded the version"
        if served is not None and served.folder == folder:
            break
        if time.monotonic() > until:
            return f"the server did not load the version within {load_s:g} s"
        time.sleep(_LOOK_S)
    if served.error:
        return f"the server does not load it: {served.error}"[:_MOST_TOLD]
    until = time.monotonic() + watch_s
    while time.monotonic() < until:
        time.sleep(min(_LOOK_S, watch_s))
        now = read_served(place)
        if not is_served(releases) or now is None or now.server != served.server:
            return f"the server died within {watch_s:g} s of the swap"
    return ""
