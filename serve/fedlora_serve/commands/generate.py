"""`fedlora generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from fedlora.base.pack import EMBEDDED, GENERATION_CONFIG
from fedlora.commands.needed import needed
from fedlora.errors import ConfigError
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter

from fedlora_serve.commands.interrupt import ends_at_once
from fedlora_serve.text.model_defaults import GENERATION_CONFIG_CHOICES, model_defaults
from fedlora_serve.text.sampling import Sampling

needed("jinja2", "onnxruntime", "tokenizers")


@click.command()
@click.argument("base", required=False, type=click.Path())
@click.option("--model", metavar="BASE", help="BASE may be given so, too.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="PATH[=WEIGHT]",
    help="A PEFT directory or a .onnx_adapter file; without it the base speaks. Several speak together, each with its "
    "weight, or 1.",
)
@click.option(
    "--allow-unnamed-base",
    is_flag=True,
    help="Take an adapter of another tool, which does not name its base, where it fits.",
)
@click.option("--prompt", required=True)
@click.option("--max-tokens", type=int, help="[default: the model's, or 128]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: the model's, or 0]")
@click.option(
    "--top-k", type=int, help="Choose among the k likeliest tokens; 0: among all.  [default: the model's, or 0]"
)
@click.option(
    "--top-p",
    type=float,
    help="Choose among the likeliest whose probabilities add up to this.  [default: the model's, or 1]",
)
@click.option(
    "--min-p",
    type=float,
    help="Choose among those as likely as this share of the likeliest.  [default: the model's, or 0]",
)
@click.option(
    "--repetition-penalty",
    type=float,
    help="Above 1: what was said becomes less likely.  [default: the model's, or 1]",
)
@click.option(
    "--generation-config",
    type=click.Choice(GENERATION_CONFIG_CHOICES),
    default="auto",
    show_default=True,
    help="The model's defaults are those of its generation_config.json; none: it has none.",
)
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling at temperatures above 0."
)
@click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True, help="0: ONNX Runtime chooses.")
def generate(
    base: str | None,
    model: str | None,
    adapters: tuple[str, ...],
    allow_unnamed_base: bool,
    prompt: str,
    max_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    generation_config: str,
    stop: tuple[str, ...],
    seed: int,
    threads: int,
) -> None:
    """Print the prompt and what follows it, as it comes.

    BASE is the folder of a base pack with its graph.
    """
    if bool(base) == bool(model):
        named = "neither" if not base else f"{base} and --model {model}"
        raise click.UsageError(f"expected one BASE, as fedlora generate BASE or as --model BASE; got {named}")
    numbers = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    given: dict[str, Any] = {name: number for name, number in numbers.items() if number is not None}
    sampling = Sampling(seed=seed, stop=stop, **given)  # a value that makes no sense tells so before the base is read
    check_there(base or model or "", (EMBEDDED,))
    shares = [_path_and_weight(text) for text in adapters]
    for path, _ in shares:
        check_adapter(path, otherwise="expected a PEFT directory, a .onnx_adapter file or a hub id")
    # Here: `fedlora --help` asks for this command's summary, and ONNX Runtime takes long to load.
    from fedlora_serve.local.engine import Engine
    from fedlora_serve.local.generate import generate as generate_text

    with ends_at_once():
        engine = Engine(base or model or "", threads=threads)
    loaded = engine.load_adapters(shares, allow_unnamed_base=allow_unnamed_base)
    if generation_config == "auto":
        defaults = model_defaults(engine.base)
        open_ones: dict[str, Any] = {name: value for name, value in defaults.values.items() if name not in given}
        if open_ones:
            told = ", ".join(f"{name} {value:g}" for name, value in open_ones.items())
            click.echo(f"as the model's {GENERATION_CONFIG} says: {told} (--generation-config none)", err=True)
            sampling = replace(sampling, **open_ones)
    pieces = generate_text(engine, prompt, sampling, adapter=loaded)
    with ends_at_once():
        first = next(pieces, "")  # an error comes before the first output
        click.echo(prompt + first, nl=False)
        for piece in pieces:
            click.echo(piece, nl=False)
    click.echo()


def _path_and_weight(text: str) -> tuple[str, float]:
    """What PATH[=WEIGHT] says. A path that is there may have a = in it."""
    path, is_weighted, weight = text.rpartition("=")
    if not is_weighted or Path(text).exists():
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise ConfigError(
            f"--adapter {text}: expected a path, or PATH=WEIGHT with a number, such as law=0.7, got {weight!r:.40}"
        ) from None
