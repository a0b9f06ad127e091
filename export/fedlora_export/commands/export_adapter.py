"""`fedlora export-adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click
from fedlora.base.pack import EMBEDDED, open_pack
from fedlora.commands.needed import needed
from fedlora.exported.adapter_manifest import FILE_PROFILES
from fedlora.exported.profiles import DEFAULT, Profile
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter

needed("onnxruntime")


@click.command("export-adapter")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .onnx_adapter file.")
@click.option(
    "--base",
    help="The base pack; needed for profile fast, for kinds other than LoRA, and where the adapter records none.",
)
@click.option(
    "--profile", type=click.Choice(FILE_PROFILES), default=DEFAULT, show_default=True,
    help="Of the graph that takes it. compat: A and B of each module, as other tools have them; fast: joined ones.",
)  # fmt: skip
def export_adapter(adapter: Path, output: Path, base: str | None, profile: str) -> None:
    """Write ADAPTER, a PEFT directory, as a file of ONNX Runtime's adapter format, and a manifest beside it."""
    check_adapter(adapter)
    if base is not None:
        check_there(base, (EMBEDDED,))
    from fedlora_export.adapter_export import export_peft  # here: `fedlora --help` needs no ONNX Runtime

    pack = None if base is None else open_pack(base)
    export_peft(adapter, output, pack, profile=cast(Profile, profile))
    click.echo(f"{output}: {output.stat().st_size / 1e3:.0f} kB", err=True)
