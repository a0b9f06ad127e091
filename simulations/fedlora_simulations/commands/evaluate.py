"""`fedlora evaluate`."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from fedlora.base.pack import EMBEDDED
from fedlora.commands.needed import needed
from fedlora.config.hub_source import is_hub
from fedlora.config.run import FieldNames, RunConfig, changed
from fedlora.counted import counted
from fedlora.errors import ConfigError
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter
from fedlora.terminal import Terminal
from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from fedlora_simulations.evaluation.evaluate import Evaluation

needed("tokenizers", "torch")

_KEYS = tuple(f"data.fields.{field.name}" for field in fields(FieldNames) if field.name != "owner")
_CALLED = {
    "loss": "loss, nats per {unit}", "perplexity": "perplexity", "accuracy": "accuracy", "macro_f1": "macro F1",
    "mcc": "Matthews' correlation", "acc": "choice by likelihood (acc)", "acc_norm": "... per character (acc_norm)",
    "acc_bytes": "... per byte (acc_bytes)", "exact_match_strict": "generated answers, number after ####",
    "exact_match_flexible": "... last number",
}  # fmt: skip


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="MODEL [ADAPTER] DATA")
@click.option("--round", "server_round", type=click.IntRange(min=1), help="Of ADAPTER, a run.  [default: its last one]")
@click.option("--graph", default="", metavar="DIR", help="Compute in the graph that was exported into DIR.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens of a window.  [default: the run's, or 512]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many examples.")
@click.option("--prompt", default="", metavar="TEXT", help=r"Around each prompt, as in 'Question: {prompt}\nAnswer:'.")
@click.option(
    "--answers", is_flag=True, help="Generate an answer to each prompt, and compare the numbers as GSM8K does."
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="A field's name: data.fields.prompt=question."
)
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def evaluate(
    places: tuple[str, ...], server_round: int | None, graph: str, length: int | None, limit: int | None, prompt: str,
    answers: bool, max_tokens: int, changes: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Measure the base pack MODEL, with ADAPTER or without, on DATA: a file, or a folder's test set.

    ADAPTER is a PEFT directory, a .onnx_adapter file, or a run. Loss; of labels accuracy, macro F1 and Matthews'
    correlation; of multiple choice the share that is chosen right by likelihood: docs/simulations.md.
    """
    if not 2 <= len(places) <= 3:
        raise click.UsageError(f"expected MODEL DATA or MODEL ADAPTER DATA, got {counted(len(places), 'word')}")
    model, adapter, data = places[0], places[1] if len(places) == 3 else "", places[-1]
    if server_round and not adapter:
        raise ConfigError(f"--round {server_round}: there is no ADAPTER; name the directory of a run, or leave it out")
    check_there(model, (EMBEDDED,))
    if adapter:
        check_adapter(adapter)
    if not is_hub(data):
        check_there(data)
    if graph:
        check_there(graph)
    for change in changes:
        if (key := change.partition("=")[0]) not in _KEYS:
            raise ConfigError(f"--set {key}: what is measured takes names of fields only: {', '.join(_KEYS)}")
    # Here, because it takes torch seconds to load: what is mistyped has been told.
    from fedlora_simulations.evaluation.adapters import adapter_place
    from fedlora_simulations.evaluation.evaluate import Order
    from fedlora_simulations.evaluation.evaluate import evaluate as measure

    place = adapter_place(adapter, server_round or 0) if adapter else None
    names = replace(place.config.data.fields, owner="") if place and place.config else FieldNames()
    config = changed(replace(RunConfig(), data=replace(RunConfig().data, fields=names)), changes)
    order = Order(
        model=model, adapter=place, data=Path(data), graph=graph, fields=config.data.fields, length=length or 0,
        limit=limit or 0, prompt=prompt, answers=answers, max_tokens=max_tokens,
    )  # fmt: skip
    found = measure(order)
    if as_json:
        click.echo(json.dumps(found.told()))
        return
    errors, console = Terminal(stderr=True), Terminal()
    for notice in found.notices:
        errors.print(notice, soft_wrap=True)
    console.print(_told(found), soft_wrap=True)
    console.print(_table(found))
    if found.cut_examples or found.left_out_examples:
        cut = counted(found.cut_examples, "example")
        console.print(f"{cut} cut to a window, {found.left_out_examples} left out", soft_wrap=True)


def _told(found: Evaluation) -> str:
    """What was measured, on what, by what."""
    what = f"round {found.server_round} of a run" if found.server_round else found.adapter or "the base alone"
    measured = counted(found.measured, found.unit) if found.unit == "token" else ""
    told = ", ".join(part for part in (counted(found.examples, "example"), measured, found.runtime) if part)
    return f"{what}: {told}"


def _table(found: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    numbers = found.numbers()
    for name, called in _CALLED.items():
        if name in numbers:
            error = numbers.get(f"{name}_stderr")
            table.add_row(
                called.format(unit=found.unit), f"{numbers[name]:.4f}", "" if error is None else f"{error:.4f}"
            )
    return table
