"""Clients of one kind that take all they can get, as a process of their own: python -m tests.serve.load.hog URL KIND ..."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

_WORDS = ("the", "of", "a", "def", "return", "import", "class", "self", "for", "in", "if", "not", "print", "value")
_TIMEOUT_S = 120


def _text(words: int) -> str:
    return " ".join(random.choices(_WORDS, k=words))


def _answers(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": ["a"] * 8, "n": 16, "max_tokens": 120, "ignore_eos": True}


def _stream(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": _text(4), "n": 16, "max_tokens": 120, "ignore_eos": True, "stream": True}


def _prompts(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": [_text(120) for _ in range(32)], "max_tokens": 1}


def _chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": _text(60)}], "n": 8, "max_tokens": 60}


def _embeddings(model: str) -> dict[str, Any]:
    return {"model": model, "input": [_text(100) for _ in range(64)]}


KINDS: Mapping[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "answers": ("/v1/completions", _answers),
    "streams": ("/v1/completions", _stream),
    "prompts": ("/v1/completions", _prompts),
    "chats": ("/v1/chat/completions", _chat),
    "embeddings": ("/v1/embeddings", _embeddings),
}


def ask(url: str, path: str, body: dict[str, Any], key: str, source: str = "127.0.0.1") -> int:
    """The status of one request, answered to its end; 0 where there is none."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=_TIMEOUT_S, source_address=(source, 0)
    )
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _main(url: str, kind: str, clients: int, seconds: float, keys: list[str], models: list[str]) -> None:
    """So many clients, one request after another each, spread over the keys and the models; prints the statuses."""
    path, body_of = KINDS[kind]
    statuses, ends = Counter[int](), time.monotonic() + seconds

    def client(number: int) -> None:
        key, model = keys[number % len(keys)], models[number % len(models)]
        source = f"127.0.0.{2 + number % len(keys)}"  # and as many addresses
        while time.monotonic() < ends:
            statuses[ask(url, path, body_of(model), key, source)] += 1

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, ends - time.monotonic()))
    print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    _main(
        sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5].split(","), sys.argv[6].split(",")
    )
