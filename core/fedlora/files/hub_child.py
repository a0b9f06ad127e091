"""The process that talks with a hub: whatever that sends, it costs this process alone.

It is run as a file, with a request, a JSON object, on its standard input. The library reads lists and messages whole,
however long they are, and a file as long as it goes on. So it is run within bounds of memory and of each file
(`limited`), and all files together are bounded here. The
answer is one JSON object on the standard output: what was found, or {"error": a line, "status": the hub's, 0 where it did
not answer}.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_LOOK_S = 0.25
_LINE = 400  # characters of what went wrong that are told


def listed(request: dict[str, Any]) -> dict[str, Any]:
    """The commit of a revision, and [name, bytes] of each of its files, as the hub tells them: nothing of it is checked."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(request["id"], revision=request["revision"], files_metadata=True, timeout=30)
    return {"commit": info.sha, "files": [[file.rfilename, file.size or 0] for file in info.siblings or ()]}


def downloaded(request: dict[str, Any], end: Any) -> dict[str, Any]:
    """The directory of the files that match; `end` is called where more comes than was announced, or nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    blobs = Path(HF_HUB_CACHE) / f"models--{request['id'].replace('/', '--')}" / "blobs"
    if not request["is_cached"]:
        watch = threading.Thread(target=_watch, args=(blobs, request, end), daemon=True)
        watch.start()
    directory = snapshot_download(
        request["id"], revision=request["revision"], allow_patterns=request["patterns"],
        local_files_only=request["is_cached"],
    )  # fmt: skip
    return {"directory": directory}


def _watch(blobs: Path, request: dict[str, Any], end: Any) -> None:
    """Look at what has come so far, again and again."""
    before = last = _bytes_in(blobs)
    most, quiet_s, least = request["most_bytes"], request["quiet_s"], request["least_bytes"]
    since, parent = time.monotonic(), os.getppid()
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
        now = _bytes_in(blobs)
        if now - before > most:
            end(f"more comes than the {most} bytes that are expected of what it announced")
        if abs(now - last) >= least:
            last, since = now, time.monotonic()
        if time.monotonic() - since > quiet_s:
            end(f"less than {least} bytes came in {quiet_s:g} s")
    os._exit(1)  # nobody waits for it any more


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                total += entry.stat().st_size
    return total


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a file goes on beyond the size that was announced"
    return (str(error).splitlines() or [""])[0][:_LINE] or type(error).__name__


def _main(request: dict[str, Any]) -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints is none of the answer
    saying = threading.Lock()

    def say(content: dict[str, Any]) -> None:
        with saying:
            with suppress(BrokenPipeError):
                answer.write(json.dumps(content) + "\n")
                answer.flush()
            os._exit(0)  # threads of a download that is given up would go on

    try:
        import huggingface_hub.errors

        try:
            say(downloaded(request, lambda why: say(_failed(why))) if "patterns" in request else listed(request))
        except huggingface_hub.errors.HfHubHTTPError as error:
            response = error.response
            say(_failed(_line(error), response.status_code if response is not None else 0))
    except ImportError as error:
        say({"missing": _line(error)})
    except MemoryError:
        say(_failed(f"it sends what takes more than {request['memory_bytes'] >> 20} MB of memory"))
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        say(_failed(_line(error)))


def _failed(why: str, status: int = 0) -> dict[str, Any]:
    return {"error": why, "status": status}


if __name__ == "__main__":
    _main(json.load(sys.stdin))
