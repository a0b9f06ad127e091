"""`fedlora export-adapter`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.pack import open_pack

from fedlora_export.adapter_export import export_peft


@click.command("export-adapter")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .onnx_adapter file.")
@click.option("--base", help="The base pack; needed where the adapter does not record its own.")
def export_adapter(adapter: Path, output: Path, base: str | None) -> None:
    """Write ADAPTER, a PEFT directory, as a file of ONNX Runtime's adapter format, and a manifest beside it."""
    export_peft(adapter, output, None if base is None else open_pack(base))
    click.echo(f"{output}: {output.stat().st_size / 1e3:.0f} kB", err=True)
