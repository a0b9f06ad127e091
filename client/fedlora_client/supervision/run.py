"""All processes of a device in one: the trainer, the link to the server, and what is served."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

from fedlora.errors import ConfigError
from fedlora.files.at_rest import use_key
from fedlora.fleet.flower_process import flower_environment

from fedlora_client.service.clock import clock_fault
from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.logs import file_logger, log_into
from fedlora_client.service.reaching import hindrance
from fedlora_client.service.state import StateFolder
from fedlora_client.supervision.children import Child, Children
from fedlora_client.supervision.link_words import LinkWords, may_have_installed_half, needs_a_new_start, plain
from fedlora_client.supervision.publishing import Publisher, admin_key_of
from fedlora_client.supervision.supernode import flower_home, supernode_command, supernode_process, warm_app_of

Part = Literal["trainer", "link", "serve"]


def run_device(config: DeviceConfig, parts: tuple[Part, ...]) -> None:
    """Run these parts until SIGTERM or SIGINT. Raises ConfigError where one could never run."""
    if {"trainer", "serve"} & {*parts}:  # the link's user need not read it
        use_key(config.device.at_rest_key)
    state = StateFolder(config.state)
    with ExitStack() as held:
        for part in parts:
            held.enter_context(state.held(f"{part}-supervisor"))
        log_into(config.state / "log", "run")
        children, publisher = _children(config, parts)
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        if publisher:
            threading.Thread(target=publisher.run, args=(stopping,), daemon=True).start()
        try:
            Children(children, state, stopping).run()
        finally:
            if publisher:
                publisher.end()


def _children(config: DeviceConfig, parts: tuple[Part, ...]) -> tuple[list[Child], Publisher | None]:
    children, publisher = [], None
    if "trainer" in parts:
        command = [sys.executable, "-m", "fedlora_client.supervision.trainer", str(config.path)]
        children.append(_child("trainer", lambda: command, dict(os.environ), _to_stderr))
    if "link" in parts:
        supernode_command(config)  # what is wrong with it is told now
        lines = file_logger(config.state / "log", "link")
        server = config.server
        words = LinkWords(
            server.superlink, StateFolder(config.state), lambda: hindrance(server), lambda: clock_fault(server)
        )

        def on_line(line: str) -> None:
            if line := plain(line):
                lines.info("%s", line)
                if words.hear(line):
                    link.worked()
                if needs_a_new_start(line):
                    link.end()  # as a node that comes back it is asked again
                if may_have_installed_half(line):
                    shutil.rmtree(config.state / "flwr" / "apps", ignore_errors=True)  # it is installed anew

        warm, environment_of_link = warm_app_of(config)
        if warm:
            children.append(_child("app", lambda: warm, flower_environment(flower_home(config)), on_line))
        link = _child("link", lambda: supernode_process(config), environment_of_link, on_line)
        children.append(link)
    if "serve" in parts:
        if not config.serve.is_used:
            raise ConfigError(
                f"{config.path}: nothing says where adapters go; set serve.model, serve.url or serve.on_commit"
            )
        url, key = config.serve.url, ""
        if config.serve.model:
            key = secrets.token_urlsafe(32)
            url = f"http://{config.serve.host}:{config.serve.port}"
            config.adapters.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, "FEDLORA_ADMIN_KEY": key}
            command_of_serve = _serve_command(config)
            lines_of_serve = file_logger(config.state / "log", "serve")
            children.append(
                _child("serve", lambda: command_of_serve, environment, lambda line: lines_of_serve.info("%s", line))
            )
        elif url:
            key = admin_key_of(config)
        served = next((child for child in children if child.name == "serve"), None)
        publisher = Publisher(config, url, key, starts=lambda: served.starts if served else 0)
    return children, publisher


def _serve_command(config: DeviceConfig) -> list[str]:
    serve, update = config.serve, config.update
    signed: list[str] = []
    if update.url:  # what is signed goes by its own name, and nothing unsigned does; what was trained here needs no key
        keys = [word for key in update.keys for word in ("--release-key", f"{update.name}={key}")]
        signed = ["--releases", str(config.releases), *keys]
    return [
        sys.executable, "-c", "from fedlora.cli import main; main()", "serve", serve.model, "--host", serve.host, "--port",
        str(serve.port), "--adapter-folder", str(config.adapters), *signed,
    ]  # fmt: skip


def _child(
    name: str, command: Callable[[], list[str]], environment: dict[str, str], on_line: Callable[[str], None]
) -> Child:
    return Child(name=name, command=command, environment=environment, on_line=on_line)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
