"""`fedlora export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from click.core import ParameterSource
from fedlora.base.pack import EMBEDDED, MANIFEST, find_pack, open_pack
from fedlora.commands.needed import needed
from fedlora.errors import ConfigError
from fedlora.exported.profiles import DEFAULT, PROFILES, SCALE_PROFILES, Profile
from fedlora.files.atomic import check_directory
from fedlora.graph.packed_layers import FLOAT_ACCURACY, INT8_ACCURACY
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter, find_adapter
from fedlora.peft.for_base import adapter_of

if TYPE_CHECKING:
    from fedlora_export.export import ExportedGraph

needed("onnx", "onnx_ir", "onnxruntime")

_ACCURACY = {"int8": INT8_ACCURACY, "float32": FLOAT_ACCURACY}


@click.command()
@click.argument("base", type=click.Path())
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder of its own, with a copy of the pack.")
@click.option(
    "--profile", "profiles", multiple=True, type=click.Choice(PROFILES), default=(DEFAULT,), show_default=True,
    help="How an adapter comes in; may be given more than once. compat: A and B of each module, as other tools have them; "
    "fast: joined ones; rows: for each row of a batch its own; kernel: the same, through an operator in C; base: none.",
)  # fmt: skip
@click.option(
    "--accuracy", type=click.Choice(tuple(_ACCURACY)), default="int8", show_default=True,
    help="Of the activations within a product: int8 is several times faster, float32 equals the training.",
)  # fmt: skip
@click.option(
    "--output-scales",
    "takes_scales",
    is_flag=True,
    help="With inputs for what scales a module's output, which adapters of DoRA and IA3 need; kernel takes them without.",
)
@click.option(
    "--merge", type=click.Path(path_type=Path),
    help="An adapter, a PEFT directory, folded into the base, which is quantized anew in a folder of its own (-o).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output folder, with all that is in it, if it exists.")
@click.pass_context
def export(
    context: click.Context,
    base: str,
    output: Path | None,
    profiles: tuple[str, ...],
    accuracy: str,
    takes_scales: bool,
    merge: Path | None,
    force: bool,
) -> None:
    """Write ONNX graphs of BASE, a base pack, into the pack's folder."""
    check_there(base, (EMBEDDED,))
    if takes_scales and (merge is not None or SCALE_PROFILES.isdisjoint(profiles)):
        raise ConfigError(
            f"--output-scales is for the profiles {', '.join(p for p in PROFILES if p in SCALE_PROFILES)}: kernel takes "
            "what scales modules as it is, and base, which --merge writes, takes no adapter; leave it out"
        )
    if merge is not None:
        check_adapter(merge)
    if output is not None and output.resolve() != find_pack(base).resolve():
        check_directory(output, replace=MANIFEST if force else None)
    # Here: `fedlora --help` asks for this command's summary, and onnx and ONNX Runtime take long to load.
    from fedlora_export.export import export_base
    from fedlora_export.merge import export_merged

    pack, level = open_pack(base), _ACCURACY[accuracy]
    if merge is not None:
        if output is None:
            raise ConfigError("--merge makes another base, which needs a folder of its own; name one with -o")
        if context.get_parameter_source("profiles") is ParameterSource.COMMANDLINE:
            raise ConfigError(
                "--merge writes the profile base alone: its graph has no adapter inputs; leave --profile out"
            )
        adapter, _ = adapter_of(find_adapter(merge), pack, any_kind=True)
        graph, cost = export_merged(pack, adapter, output, accuracy_level=level, replace=force)
        _show(graph, accuracy)
        told = cost or "what it costs is told where fedlora[client] is installed"
        click.echo(f"merged: {told}", err=True)
        return
    names = cast("tuple[Profile, ...]", tuple(dict.fromkeys(profiles)))
    written = export_base(pack, output, profiles=names, accuracy_level=level, takes_scales=takes_scales, replace=force)
    for graph in written:
        _show(graph, accuracy)


def _show(graph: ExportedGraph, accuracy: str) -> None:
    click.echo(f"{graph.path}: {graph.path.stat().st_size / 1e3:.0f} kB", err=True)
    if graph.exact is None or graph.as_written is None:
        click.echo("not compared with torch: install fedlora[client] for that", err=True)
        return
    click.echo(f"largest difference from torch's logits: {_text(graph.exact)} in float32", err=True)
    if accuracy != "float32":
        click.echo(f"as written, with {accuracy} activations: {_text(graph.as_written)}", err=True)


def _text(differences: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
