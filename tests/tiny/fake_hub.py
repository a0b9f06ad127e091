"""As much of a Hugging Face hub on 127.0.0.1 as its own client needs to write into a repository of models.

Repositories, files and tags are kept in memory; large files go by git-lfs's basic transfer, as on the hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_LARGE = 1 << 10  # from so many bytes on, a file is large


class FakeHub:
    """What it holds, and what it was asked."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.files: dict[str, dict[str, bytes]] = {}  # by repository
        self.tags: dict[str, dict[str, dict[str, bytes]]] = {}  # by repository and tag: the files by then
        self.private: dict[str, bool] = {}
        self.lfs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuses_tags = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            do_POST = do_PUT = do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path[5:]
            self.lfs[path[5:]] = body
            self.give(request, {})
        elif request.headers.get("Authorization") != f"Bearer {self.token}":
            self.give(request, {"error": "Invalid username or password."}, 401)
        else:
            self.give(request, *self.said(request.command, path, body))

    def said(self, method: str, path: str, body: bytes) -> tuple[Any, int]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.files:
                return {"url": f"{self.url}/{name}"}, 409
            self.files[name], self.tags[name] = {".gitattributes": b""}, {}
            self.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            return {"url": f"{self.url}/{name}"}, 200
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for each in json.loads(body)["objects"]:
                upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
                objects.append(each if each["oid"] in self.lfs else {**each, **upload})
            return {"transfer": "basic", "objects": objects}, 200
        _, _, _, owner, name, *rest = path.split("/")
        repo = f"{owner}/{name}"
        if repo not in self.files:
            return {"error": "Repository not found"}, 404
        files = self.files[repo]
        if rest[:1] == ["refs"]:
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": "0" * 40} for tag in self.tags[repo]]
            return {"branches": [], "converts": [], "tags": tags}, 200
        if rest[:1] == ["tree"]:
            return [{"type": "file", "path": each, "oid": "0", "size": len(data)} for each, data in files.items()], 200
        if rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            kinds = [
                {"path": each["path"], "uploadMode": "lfs" if each["size"] >= _LARGE else "regular"} for each in asked
            ]
            return {"files": [{**each, "shouldIgnore": False, "oid": None} for each in kinds]}, 200
        if rest[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.lfs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            oid = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
            return {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.url}/{repo}/commit/{oid}",
                "hookOutput": "",
            }, 200
        if rest[:1] == ["tag"] and method == "POST" and not self.refuses_tags:
            self.tags[repo][json.loads(body)["tag"]] = dict(files)
            return {}, 200
        return {"error": f"not known here: {method} {path}"}, 400

    def give(self, request: BaseHTTPRequestHandler, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


@contextmanager
def fake_hub(token: str) -> Iterator[FakeHub]:
    """A hub that takes this token, as long as the block runs."""
    hub = FakeHub(token)
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
