"""An update of a device from end to end over loopback, and swaps of a service that many clients are asking."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from fedlora.base.pack import BasePack
from fedlora.identity.keys import SigningKey
from fedlora_client.updating.settings import UpdateSettings
from fedlora_client.updating.update import update
from fedlora_export.export import export_base
from fedlora_server.distribution.repository import Repository

from trust.release_folder import NAME, random_release

_READY_S = 120.0


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@dataclass(frozen=True, slots=True)
class Fleet:
    """A repository that a web server on loopback gives out, and what a device needs to update from it."""

    folder: Path
    base: BasePack
    key: SigningKey
    repository: Repository
    settings: UpdateSettings
    rank: int

    def publish(self, version: int) -> None:
        made = self.folder / f"release-{version}"
        random_release(made, self.base, self.rank, self.key, version)
        self.repository.publish(made, "stable", [self.key.public])


@contextmanager
def given_out(folder: Path, base: BasePack, rank: int) -> Iterator[Fleet]:
    """The base with its graphs in `folder`/model, an empty repository, and its server."""
    export_base(base, folder / "model", profiles=("compat", "kernel"))
    key, repository = SigningKey.generate(), Repository(folder / "repo", folder / "keys")
    root = repository.init()
    key.public.write(folder / "release.pub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(repository.path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = UpdateSettings(
        url=f"http://127.0.0.1:{server.server_address[1]}", name=NAME, root=root, keys=(folder / "release.pub",),
        base=str(folder / "model"), model=str(folder / "model"), folder=folder / "releases", watch_s=0.0,
    )  # fmt: skip
    try:
        yield Fleet(folder, base, key, repository, settings, rank)
    finally:
        server.shutdown()
        server.server_close()


def update_seconds(fleet: Fleet, repeats: int) -> float:
    """Seconds by the clock from asking the mirror until a version is in use, with its canary; the median.

    No service runs: the minute for which one is watched is not in it.
    """
    spent = []
    for version in range(1, repeats + 1):
        fleet.publish(version)
        began = time.perf_counter()
        assert update(fleet.settings).result == "installed"
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


@dataclass(slots=True)
class Asked:
    """What clients of a service saw."""

    requests: int = 0
    failed: int = 0
    versions: set[str] | None = None


def swap_under_load(fleet: Fleet, first: int, swaps: int, clients: int) -> Asked:
    """So many clients ask the released adapter without a pause while `fedlora update` swaps it so many times."""
    fleet.publish(first)
    assert update(fleet.settings).result == "installed"
    with _service(fleet) as url:
        return asyncio.run(_load(fleet, url, first, swaps, clients))


async def _load(fleet: Fleet, url: str, first: int, swaps: int, clients: int) -> Asked:
    seen, is_over = Asked(versions=set()), asyncio.Event()
    limits = httpx.Limits(max_connections=clients)

    async def one(client: httpx.AsyncClient) -> None:
        body = {"model": NAME, "prompt": "The kitchen", "max_tokens": 4}
        while not is_over.is_set():
            seen.requests += 1
            try:
                answer = await client.post(f"{url}/v1/completions", json=body)
            except httpx.HTTPError:
                seen.failed += 1
                continue
            seen.failed += answer.status_code != 200
            assert seen.versions is not None
            seen.versions.add(answer.headers.get("x-adapter-release", "none"))

    async with httpx.AsyncClient(limits=limits, timeout=120) as client:
        asking = [asyncio.create_task(one(client)) for _ in range(clients)]
        for version in range(first + 1, first + swaps + 1):
            await asyncio.to_thread(fleet.publish, version)
            attempt = await asyncio.to_thread(update, fleet.settings)
            assert attempt.result == "installed", attempt.told
        is_over.set()
        await asyncio.gather(*asking)
    return seen


@contextmanager
def _service(fleet: Fleet) -> Iterator[str]:
    """`fedlora serve` in a process of its own, which serves what is in use."""
    command = [
        sys.executable, "-c", "from fedlora.cli import main; main()", "serve", str(fleet.folder / "model"), "--port", "0",
        "--releases", str(fleet.settings.folder), "--require-signed", str(fleet.folder / "release.pub"), "--queue", "1000",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield f"http://{line.split('http://', 1)[1].split()[0]}"
    finally:
        process.terminate()
        process.wait(_READY_S)
