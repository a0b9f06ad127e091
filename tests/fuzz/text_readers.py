"""Readers of what people write: a device's data, the bodies of requests."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedlora.config.run import DataConfig

from tests.fuzz.reader import Reader, full_base, written


def data(folder: Path) -> Reader:
    """A device's own files, of every form that is read, until they are windows of tokens."""
    from fedlora_client.data.files_dataset import files
    from fedlora_client.data.windows import read_windows

    base = full_base(folder)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    records: Mapping[str, list[Any]] = {
        "text": [{"text": "once upon a time"}, {"text": "the end"}],
        "prompt": [{"prompt": "2 + 2 =", "completion": " 4"}] * 2,
        "chat": [{"messages": chat}, {"messages": [*chat, *chat]}],
        "sharegpt": [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}] * 2,
        "alpaca": [{"instruction": "add", "input": "1 1", "output": "2"}] * 2,
        "preference": [{"prompt": [chat[0]], "completion": [chat[1]]}] * 2,
    }
    files_: dict[str, str | bytes] = {"plain/a.txt": "some words\n\nand more\n" * 9}
    for name, items in records.items():
        lines = "".join(json.dumps(item) + "\n" for item in items)
        files_ |= {f"{name}/a.jsonl": lines, f"{name}-json/a.json": json.dumps(items)}
    chats = "".join(json.dumps(item) + "\n" for item in records["chat"])
    compressed: Mapping[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    files_ |= {f"{name}/a.jsonl.{name}": compress(chats.encode()) for name, compress in compressed.items()}
    files_ |= {
        "csv/a.csv": 'prompt,completion\n"a, b",c\nd,"e ""f"""\n',
        "tsv/a.tsv": "prompt\tcompletion\na\tb\nc\td\n",
        "labels/a.csv": "text,label\ngood,1\nbad,0\n",
    }

    def read(place: Path, name: str) -> None:
        data = files(DataConfig(name="files"), {"data-path": str((place / name).parent)})
        for examples in (data.train, data.held_out):
            if examples:
                read_windows(examples, base.directory, base.shape, 300, "here")

    return Reader(written(folder / "data", files_), tuple(files_), read, slow_s=60.0)  # 70,000 records take 15 s


def bodies(folder: Path) -> Reader:
    """Bodies of requests: a file is called after its route."""
    from fedlora_serve.http.access.keys import Keys, key_digest

    from tests.serve.http.fake_engine import FakeEngine
    from tests.serve.http.services import BASE, Client, FakeEmbedder, service

    base = full_base(folder)
    common = {
        "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "stop": ["x"], "seed": 1, "n": 1,
        "logit_bias": {"5": 1}, "stream": False, "frequency_penalty": 0.1, "stop_token_ids": [2], "min_tokens": 0,
    }  # fmt: skip
    bodies: Mapping[str, Mapping[str, Any]] = {
        "/v1/completions": {"model": BASE, "prompt": ["a", "b"], "logprobs": 2, "echo": False, **common},
        "/v1/chat/completions": {
            "model": BASE, "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 1,
            "chat_template_kwargs": {"x": None}, "stream_options": None, "tools": [], **common,
        },
        "/v1/embeddings": {"model": BASE, "input": ["a", "b"], "encoding_format": "float"},
        "/v1/load_lora_adapter": {"lora_name": "other", "lora_path": "other", "load_inplace": True},
        "/v1/unload_lora_adapter": {"lora_name": "mine"},
        "/v1/adapters/mine/pin": {"pinned": True},
    }  # fmt: skip
    files = {f"{urllib.parse.quote(route, safe='')}.json": json.dumps(body) for route, body in bodies.items()}
    admin = "0123456789abcdef-admin"
    decoder = service(base, FakeEngine(), adapters=("mine",), limits={"max_batch_prompts": 8})
    encoder = service(base, None, adapters=("mine",), embedder=FakeEmbedder())
    for state in (decoder, encoder):
        state.keys = Keys((), admin=key_digest(admin))
    clients = [Client(state, authorization=f"Bearer {admin}") for state in (decoder, encoder)]

    def read(place: Path, name: str) -> None:
        route = urllib.parse.unquote(name.removesuffix(".json"))
        client = clients["embeddings" in route]
        content = (place / name).read_bytes()
        answer = client.request("POST", route, content=content, headers={"content-type": "application/json"})
        assert answer.status_code < 500 or answer.status_code == 503, f"{answer.status_code}: {answer.text[:2000]}"
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    return Reader(written(folder / "bodies", files), tuple(files), read, are_messages=True)
