"""From training to use: the newest committed adapter goes into `fedlora serve`, or to a command. It never costs a round."""

from __future__ import annotations

import http.client
import json
import logging
import os
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError
from fedlora.files.ownership import read_secret

from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.state import StateFolder, now_text

log = logging.getLogger("fedlora.device")
_LOOK_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MOST_TOLD = 500
_MOST_KEY_BYTES = 4096


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An answer that sends elsewhere is an error: the admin key would go with it."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass(slots=True)
class Publisher:
    """Looks at which adapter is the newest, and hands on each one once; again, later and later, where that fails."""

    config: DeviceConfig
    url: str = ""  # of a `fedlora serve`
    admin_key: str = ""
    starts: Callable[[], int] = lambda: 0  # of that service, where it is a child: one that starts has no adapter
    _process: subprocess.Popen[bytes] | None = None

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping` is set."""
        state, pause = StateFolder(self.config.state), _LOOK_S
        loaded: object = None
        ran: object = state.read("published").get("ran")
        while not stopping.wait(pause):
            newest, errors = state.read("adapter"), []
            path = newest.get("path")
            if not path:
                continue
            here = (path, self.starts())
            if self.url and loaded != here:
                errors.append(self.load(Path(str(path))))
                loaded = loaded if errors[-1] else here
            if self.config.serve.on_commit and ran != path:
                errors.append(self.run_command(newest))
                ran = path  # once: a command that fails is told, and may not be one to repeat
            if not errors:
                continue
            error = "; ".join(error for error in errors if error)
            state.write("published", {**newest, "error": error, "at": now_text(), "to": self.url, "ran": ran})
            if error:
                log.warning("the adapter of round %s was not put into use: %s", newest.get("round"), error)
            else:
                log.info("the adapter of round %s is in use", newest.get("round"))
            pause = min(2 * pause, _LONGEST_PAUSE_S) if error else _LOOK_S

    def load(self, path: Path) -> str:
        """Put the adapter in the place of the one of its name; returns what went wrong."""
        body = {"lora_name": self.config.serve.name, "lora_path": path.name, "load_inplace": True}
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/v1/load_lora_adapter", data=json.dumps(body).encode(), method="POST",
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.admin_key}"},
        )  # fmt: skip
        try:
            # Of http or https, as the configuration checks.
            with _OPENER.open(request, timeout=self.config.serve.timeout_s) as response:
                response.read(_MOST_TOLD)
        except urllib.error.HTTPError as error:
            with error:
                return f"{self.url} answers {error.code}: {error.read(_MOST_TOLD).decode(errors='replace')}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            return f"{self.url} cannot be reached: {error}"
        return ""

    def run_command(self, adapter: dict[str, Any]) -> str:
        """Run serve.on_commit; returns what went wrong."""
        values = {
            "{adapter}": str(adapter.get("path")),
            "{round}": str(adapter.get("round")),
            "{run}": str(adapter.get("name")),
        }
        command = []
        for word in self.config.serve.on_commit:
            for key, value in values.items():
                word = word.replace(key, value)
            command.append(word)
        try:
            with tempfile.TemporaryFile() as told:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=told,
                    cwd=self.config.path.parent,
                )
                try:
                    code = self._process.wait(self.config.serve.timeout_s)
                except subprocess.TimeoutExpired:
                    self.end()
                    return f"{command[0]} did not end within {self.config.serve.timeout_s:g} s"
                told.seek(max(0, told.tell() - _MOST_TOLD))
                said = told.read(_MOST_TOLD).decode(errors="replace").strip()
        except OSError as error:
            return f"{command[0]}: {error.strerror or error}"
        return f"{command[0]} ended with {code}: {said}" if code else ""

    def end(self) -> None:
        """End the command that runs, if one does."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def admin_key_of(config: DeviceConfig) -> str:
    """Raises ConfigError where there is none."""
    if config.serve.admin_key_file:
        path, where = Path(config.serve.admin_key_file), "serve.admin_key_file"
        try:
            return read_secret(path, _MOST_KEY_BYTES, where).decode().strip()
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or "no text"
            raise ConfigError(
                f"{where}: {path}: cannot be read: {told}; name a file that holds the key alone"
            ) from None
    key = os.environ.get("FEDLORA_ADMIN_KEY", "")
    if not key:
        raise ConfigError(
            "serve.url needs the admin key of that service; name serve.admin_key_file or set FEDLORA_ADMIN_KEY"
        )
    return key
