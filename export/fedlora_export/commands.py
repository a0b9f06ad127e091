"""`fedlora export` and `fedlora export-adapter`."""

from __future__ import annotations

from pathlib import Path

import click
from fedlora.errors import AdapterMismatchError
from fedlora.pack import open_pack
from fedlora.peft import read_peft

from fedlora_export.export import export_base
from fedlora_export.onnx_adapter import write_onnx_adapter


@click.command()
@click.argument("base")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder of its own, with a copy of the pack.")
@click.option("--force", is_flag=True, help="Replace the output folder if it exists.")
def export(base: str, output: Path | None, force: bool) -> None:
    """Write the ONNX decoder of BASE, a base pack, into the pack's folder."""
    graph, differences = export_base(open_pack(base), output, replace=force)
    click.echo(f"{graph}: {graph.stat().st_size / 1e3:.0f} kB", err=True)
    if differences is None:
        click.echo("not compared with torch: install fedlora[client] for that", err=True)
    else:
        parts = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        click.echo(f"largest difference from torch's logits: {parts}", err=True)


@click.command("export-adapter")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .onnx_adapter file.")
@click.option("--base", help="The base pack; needed where the adapter does not record its own.")
def export_adapter(adapter: Path, output: Path, base: str | None) -> None:
    """Write ADAPTER, a PEFT directory, as a file of ONNX Runtime's adapter format."""
    content = read_peft(adapter)
    if content.saved_modules:
        raise AdapterMismatchError(
            f"{adapter}: also replaces {', '.join(sorted(content.saved_modules))} (modules_to_save), which an adapter file "
            "cannot carry; export an adapter of A and B only"
        )
    fingerprint = content.base_fingerprint
    if base is not None:
        pack = open_pack(base)
        content.adapter.check_fits(pack.shape.linear_modules(), str(adapter))
        if fingerprint not in (None, pack.fingerprint):
            raise AdapterMismatchError(
                f"{adapter}: trained on base {fingerprint[:16]}, but {base} is {pack.fingerprint[:16]}; pass its own base"
            )
        fingerprint = pack.fingerprint
    if fingerprint is None:
        raise AdapterMismatchError(f"{adapter}: does not record its base, as PEFT's own files do not; pass --base PACK")
    write_onnx_adapter(content.adapter, fingerprint, output)
    click.echo(f"{output}: {output.stat().st_size / 1e3:.0f} kB", err=True)
