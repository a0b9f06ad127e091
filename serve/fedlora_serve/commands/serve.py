"""`fedlora serve`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from fedlora.base.pack import EMBEDDED, GENERATION_CONFIG
from fedlora.commands.needed import needed
from fedlora.counted import counted
from fedlora.errors import ConfigError
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter
from fedlora.row_lora.layout import LayoutDtype

from fedlora_serve.commands.interrupt import ends_at_once
from fedlora_serve.http.access.admin_key import ADMIN_ENV
from fedlora_serve.text.model_defaults import GENERATION_CONFIG_CHOICES, ModelDefaults

if TYPE_CHECKING:
    from fedlora_serve.http.service.config import ServeConfig
    from fedlora_serve.http.service.state import ServiceState

needed("fastapi", "jinja2", "onnxruntime", "prometheus_client", "tokenizers", "uvicorn")


@click.command(epilog=f"The admin key comes from {ADMIN_ENV} in the environment, or from the file of --config.")
@click.argument("base", type=click.Path())
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="A TOML file with keys, limits and the rest."
)
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="0: any that is free.  [default: 8000]")
@click.option("--served-model-name", help="What requests call the base.  [default: the folder's name]")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=PATH", help="Load an adapter; may be repeated.")
@click.option(
    "--adapter-folder", metavar="FOLDER", help="Adapters below it may be loaded over HTTP, with the admin key."
)
@click.option(
    "--require-signed",
    multiple=True,
    metavar="[PATTERN=]KEY.pub",
    help="Take releases that this key signed, for names like PATTERN, and nothing else. May be repeated.",
)
@click.option(
    "--release-key",
    "release_keys",
    multiple=True,
    metavar="[PATTERN=]KEY.pub",
    help="The same, while names that no pattern fits need no signature. May be repeated.",
)
@click.option(
    "--at-rest-key", metavar="SOURCE",
    help="file:PATH, env:VARIABLE or keyring:NAME: the key of adapters that are encrypted where they lie.",
)  # fmt: skip
@click.option("--releases", metavar="FOLDER", help="Serve what `fedlora update` puts into use there, as it changes.")
@click.option(
    "--chat-template", "chat_templates", multiple=True, metavar="FILE",
    help="The base's chat template, where the pack has none or another one; NAME=FILE: an adapter's. An adapter that "
    "brings its own is spoken to with that.",
)  # fmt: skip
@click.option("--rows", type=int, help="Answers in one batch.  [default: 16]")
@click.option("--threads", type=int, help="0: ONNX Runtime chooses.  [default: 0]")
@click.option("--cache-memory", metavar="SIZE", help="For keys and values.  [default: 1GiB]")
@click.option("--adapter-memory", metavar="SIZE", help="For adapters.  [default: 1GiB]")
@click.option(
    "--adapter-dtype",
    type=click.Choice(get_args(LayoutDtype)),
    help="Of adapters in memory; float16 takes half, on the graph `kernel`.  [default: float32]",
)
@click.option("--queue", type=int, help="Requests that may wait.  [default: 256]")
@click.option("--prefill-tokens", type=int, help="Tokens of prompts in one step, beside answers.  [default: 64]")
@click.option(
    "--generation-config",
    type=click.Choice(GENERATION_CONFIG_CHOICES),
    help="Sampling that a request leaves open: auto as the model's generation_config.json says, none as OpenAI does.  "
    "[default: auto]",
)
@click.option("--shutdown-timeout", type=float, metavar="SECONDS", help="For running answers to end.  [default: 30]")
@click.option("--access-log", is_flag=True, default=None, help="A line for every request.")
@click.option("--allow-open", is_flag=True, default=None, help="Serve other machines without keys.")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Of pages that may call it from a browser, such as http://localhost:3000; *: all. May be repeated.",
)
def serve(
    base: str,
    config_path: Path | None,
    adapters: tuple[str, ...],
    chat_templates: tuple[str, ...],
    shutdown_timeout: float | None,
    allow_origin: tuple[str, ...],
    require_signed: tuple[str, ...],
    release_keys: tuple[str, ...],
    **fields: str | int | bool | None,
) -> None:
    """Serve a base and its adapters over HTTP, as OpenAI's interface.

    BASE is the folder of a base pack with a graph `kernel` or `rows`, or an encoder's.
    """
    check_there(base, (EMBEDDED,))
    # Here: `fedlora --help` asks for this command's summary, and ONNX Runtime and FastAPI take a second to load.
    from fedlora.files.at_rest import use_key

    from fedlora_serve.http.api.server import bind
    from fedlora_serve.http.api.server import serve as serve_until_stopped
    from fedlora_serve.http.service.config_file import read_config
    from fedlora_serve.http.service.open_service import open_service

    options: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    options["adapters"] = _by_name(adapters)
    lists = {"allow_origin": allow_origin, "require_signed": require_signed, "release_keys": release_keys}
    options |= {name: value for name, value in lists.items() if value}
    of_base = [file for file in chat_templates if "=" not in file or Path(file).is_file()]
    if len(of_base) > 1:
        raise ConfigError(f"--chat-template {of_base[1]}: {of_base[0]} is the base's already; leave one of them")
    if of_base:
        options["chat_template"] = of_base[0]
    options["chat_templates"] = _by_name((one for one in chat_templates if one not in of_base), "--chat-template")
    if shutdown_timeout is not None:
        options["limits"] = {"shutdown_timeout_s": shutdown_timeout}
    config = read_config(config_path, options)
    use_key(config.at_rest_key)
    for path in config.adapters.values():
        check_adapter(path)
    with bind(config.host, config.port) as bound:  # a port that is taken tells so before the base is read
        with ends_at_once():
            service = open_service(base, config)
        for line in defaults_lines(service.model_defaults):
            click.echo(line, err=True)
        serve_until_stopped(
            service, config, bound, lambda: click.echo(ready_line(service, config, bound.getsockname()))
        )


def defaults_lines(defaults: ModelDefaults) -> list[str]:
    """What the model's own file changes in answers, and how to do without."""
    if not defaults.values:
        return list(defaults.notes)
    told = f"where a request leaves it open, as the model's {GENERATION_CONFIG} says: {defaults} (--generation-config none)"
    return [told, *defaults.notes]


def ready_line(service: ServiceState, config: ServeConfig, address: tuple[Any, ...]) -> str:
    """What is served, where, with how much memory, and to whom."""
    from fedlora_serve.http.service.config import shown_size

    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    loaded = service.store.stats()
    adapters = counted(loaded.loaded, "adapter")
    memory = f"{adapters} in {shown_size(loaded.resident_bytes)} of {shown_size(loaded.budget_bytes)}"
    if service.engine is not None:
        memory += f", {counted(config.rows, 'row')}, {shown_size(config.cache_bytes)} for keys and values"
    who = counted(len(config.keys), "key") if config.keys else "open, without keys"
    return f"{service.base_name} on http://{host}:{address[1]} ({who}): {memory}"


def _by_name(given: Iterable[str], option: str = "--adapter") -> dict[str, str]:
    paths: dict[str, str] = {}
    for one in given:
        name, separator, path = one.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"{option} {one}: expected NAME=PATH")
        if name in paths:
            raise ConfigError(f"{option} {one}: {name} is {paths[name]} already; give one of them another name")
        paths[name] = path
    return paths
