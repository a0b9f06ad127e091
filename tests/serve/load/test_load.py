"""A service under load: right answers, no mixed versions, no errors of its own, and its memory back at the end."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from fedlora.base.pack import BasePack
from fedlora.exported.profiles import Profile
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_serve.local.engine import Engine
from fedlora_serve.text.text_stream import TextStream

from tests.serve.load.crowd import Crowd
from tests.serve.serving_process import ADMIN, serving
from tests.serve.speakers import Speaker, greedy, random_prompt

TOKENS, PROMPTS = 12, 6


@dataclass(frozen=True, slots=True)
class Served:
    """A service as a process, and a crowd that knows what it has to say."""

    crowd: Crowd
    process: psutil.Process


@pytest.fixture
def served(
    folders: dict[Profile, Path], long_base: BasePack, single: Engine, speakers: list[Speaker], tmp_path: Path
) -> Iterator[Served]:
    """Six adapters that stay; two versions of `swapped`, and `coming`, lie ready to be loaded."""
    for number, speaker in enumerate(speakers):
        content = PeftDirectory(adapter=speaker.adapter, base_fingerprint=long_base.fingerprint)
        write_peft(tmp_path / f"adapter-{number}", content)
    names = {f"adapter-{number}": tmp_path / f"adapter-{number}" for number in range(6)} | {
        "swapped": tmp_path / "adapter-6"
    }
    options = [word for name, path in names.items() for word in ("--adapter", f"{name}={path}")]
    options += ["--served-model-name", "base", "--cache-memory", "8MiB", "--queue", "64"]
    folder, temporary = str(tmp_path), tmp_path / "tmp"
    with serving(folders["kernel"], "--adapter-folder", folder, *options, temporary=temporary) as service:
        random = np.random.default_rng(0)
        prompts = [random_prompt(random, int(length)) for length in random.integers(1, 60, PROMPTS)]
        texts = {
            (digest, number): text_of(single, prompt, speaker)
            for number, prompt in enumerate(prompts)
            for digest, speaker in [
                ("none", None),  # the base
                *((speaker.version.digest, speaker) for speaker in speakers),
            ]
        }
        crowd = Crowd(service.url, ["base", *names], prompts, texts, TOKENS)
        yield Served(crowd, psutil.Process(service.process.pid))
        assert service.stop() == (0, "")


def text_of(engine: Engine, prompt: list[int], speaker: Speaker | None) -> str:
    stream = TextStream(engine.tokenizer, prompt)
    return "".join(map(stream.push, greedy(engine, prompt, speaker, TOKENS))) + stream.finish()


async def change_adapters(client: httpx.AsyncClient, versions: Iterator[int]) -> None:
    """Replace one under load, and let another come and go."""
    swap = {"lora_name": "swapped", "lora_path": f"adapter-{next(versions)}", "load_inplace": True}
    come = {"lora_name": "coming", "lora_path": "adapter-3"}
    for path, body in (("load", swap), ("load", come), ("unload", {"lora_name": "coming"})):
        response = await client.post(f"/v1/{path}_lora_adapter", json=body, headers=ADMIN)
        assert response.status_code in (200, 202), response.text
    await asyncio.sleep(0.05)


def crowd_comes(served: Served, clients: int, seconds: float) -> None:
    versions = itertools.cycle((7, 6))
    crowd = served.crowd
    asyncio.run(crowd.run(clients, seconds, lambda client: change_adapters(client, versions)))
    assert crowd.wrong == []
    assert set(crowd.statuses) <= {200, 400, 404, 503}
    assert crowd.complete > 0


def test_a_crowd_gets_the_answers_of_the_versions_that_it_is_told(served: Served) -> None:
    crowd_comes(served, clients=24, seconds=4)
    assert {200, 400, 404} <= set(served.crowd.statuses)
    metrics = httpx.get(f"{served.crowd.url}/metrics").text
    assert 'fedlora:num_requests_running{model_name="base"} 0.0' in metrics


@pytest.mark.slow
def test_200_clients_for_a_minute_leave_no_error_no_mixture_and_no_memory(served: Served) -> None:
    crowd_comes(served, clients=200, seconds=8)  # everything that is made once is made now
    time.sleep(3)
    before = served.process.memory_info().rss
    crowd_comes(served, clients=200, seconds=60)
    time.sleep(3)
    after = served.process.memory_info().rss
    crowd = served.crowd
    print(
        f"{dict(crowd.statuses)}, {crowd.complete} answers compared, memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB"
    )
    assert crowd.complete > 1000
    assert after < 1.1 * before
