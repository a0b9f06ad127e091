"""`fedlora canary`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from fedlora.base.pack import EMBEDDED
from fedlora.commands.needed import needed
from fedlora.counted import counted
from fedlora.errors import FedloraError, ReleaseError, printable
from fedlora.nearest import check_there

needed("cryptography", "jinja2", "onnxruntime", "rfc8785", "tokenizers")


@click.command()
@click.argument("folder", metavar="RELEASE", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="BASE", help="The folder of the base pack with its graph.")
@click.option(
    "--trust", "trusted", required=True, multiple=True, type=click.Path(path_type=Path), metavar="KEY.pub",
    help="A public key that may have signed the release. May be repeated.",
)  # fmt: skip
@click.option(
    "--canary", "other", type=click.Path(path_type=Path), metavar="FILE", help="Try this one in place of the release's."
)
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def canary(folder: Path, model: str, trusted: tuple[Path, ...], other: Path | None, as_json: bool) -> None:
    """Try the canary of RELEASE on this machine.

    Exit status 3: not every text comes out as it should.
    """
    check_there(model, (EMBEDDED,))
    # Here: `fedlora --help` asks for this command's summary, and ONNX Runtime takes long to load.
    from fedlora.identity.keys import PublicKey
    from fedlora.release.canary import read_canary
    from fedlora.release.folder import read_adapter_release
    from fedlora.release.layout import ADAPTER

    from fedlora_serve.local.canary import try_canary

    release = read_adapter_release(folder, [PublicKey.read(path) for path in trusted])
    asked = read_canary(other) if other else release.manifest.canary
    if asked is None:
        raise ReleaseError(f"{folder}: the release has no canary; give one with --canary")
    try:
        tried = try_canary(asked, model, folder / ADAPTER)
    except FedloraError as error:
        if as_json:
            click.echo(json.dumps({"told": str(error), "texts": []}))
            raise SystemExit(3) from None
        raise
    failing = [each for each in tried if not each.is_good]
    told = f"{len(tried) - len(failing)} of {counted(len(tried), 'text')} as expected"
    if failing:
        told += f"; {failing[0].text[:60]!r}: {failing[0].told}"
    if as_json:
        click.echo(json.dumps({"told": told, "texts": [asdict(each) for each in tried]}))
    else:
        for each in tried:
            click.echo(printable(f"{'good' if each.is_good else 'BAD '} {each.told}: {each.text[:60]}"))
        click.echo(printable(told))
    if failing:
        raise SystemExit(3)
