"""`fedlora generate`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.base.pack import EMBEDDED
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter

from fedlora_serve.local.engine import Engine
from fedlora_serve.local.generate import generate as generate_text
from fedlora_serve.text.sampling import Sampling


@click.command()
@click.argument("base", required=False, type=click.Path())
@click.option("--model", metavar="BASE", help="BASE may be given so, too.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="A PEFT directory or a .onnx_adapter file; without it the base speaks.",
)
@click.option(
    "--allow-unnamed-base",
    is_flag=True,
    help="Take an adapter of another tool, which does not name its base, where it fits.",
)
@click.option("--prompt", required=True)
@click.option("--max-tokens", default=128, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="Choose among the k likeliest tokens; 0: among all.")
@click.option(
    "--top-p", default=1.0, show_default=True, help="Choose among the likeliest whose probabilities add up to this."
)
@click.option(
    "--min-p", default=0.0, show_default=True, help="Choose among those as likely as this share of the likeliest."
)
@click.option(
    "--repetition-penalty", default=1.0, show_default=True, help="Above 1: what was said becomes less likely."
)
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling at temperatures above 0."
)
@click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True, help="0: ONNX Runtime chooses.")
def generate(
    base: str | None,
    model: str | None,
    adapter: Path | None,
    allow_unnamed_base: bool,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stop: tuple[str, ...],
    seed: int,
    threads: int,
) -> None:
    """Print the prompt and what follows it, as it comes.

    BASE is the folder of a base pack with its graph.
    """
    if bool(base) == bool(model):
        given = "neither" if not base else f"{base} and --model {model}"
        raise click.UsageError(f"expected one BASE, as fedlora generate BASE or as --model BASE; got {given}")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    check_there(base or model or "", (EMBEDDED,))
    if adapter:
        check_adapter(adapter, otherwise="expected a PEFT directory, a .onnx_adapter file or a hub id")
    engine = Engine(base or model or "", threads=threads)
    loaded = engine.load_adapter(adapter, allow_unnamed_base=allow_unnamed_base) if adapter else None
    pieces = generate_text(engine, prompt, sampling, adapter=loaded)
    first = next(pieces, "")  # an error comes before the first output
    click.echo(prompt + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
