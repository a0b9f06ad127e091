"""`fedlora pack`: a checkpoint becomes a base pack."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import click
from rich.status import Status

from fedlora.base.pack import MANIFEST, WEIGHTS, open_pack
from fedlora.base.packing import default_bits, largest_block_size, make_pack
from fedlora.base.quantize import BLOCK_SIZES, Quantization
from fedlora.base.scales import ScaleRule
from fedlora.files.atomic import check_directory
from fedlora.terminal import Terminal

_WHY_8 = (
    "an encoder, packed at 8 bits: at 4 all-MiniLM-L6-v2 loses a sixth of each text's nearest neighbours, at 8 3% "
    "(docs/quantization.md); --bits 4 makes the smaller pack"
)

_LINE_S = 60.0  # between lines of progress where there is no terminal


@click.command()
@click.argument("source", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The pack's directory.")
@click.option("--revision", metavar="REV", help="Of a hub id: a branch, a tag or a commit.  [default: main]")
@click.option(
    "--bits", type=click.Choice(["auto", "4", "8"]), default="auto", show_default=True,
    help="Of the linear weights; auto: 4, and 8 for an encoder.",
)  # fmt: skip
@click.option("--embedding-bits", type=click.Choice(["4", "8"]), default="8", show_default=True)
@click.option(
    "--block-size", type=click.Choice(["auto", *map(str, BLOCK_SIZES)]), default="auto", show_default=True,
    help="Entries that share a scale; auto: the most that divide the hidden size, which is the fastest.",
)  # fmt: skip
@click.option("--symmetric/--asymmetric", default=True, show_default=True, help="Zero point in the middle, or stored.")
@click.option(
    "--scales",
    "scale_rule",
    type=click.Choice(get_args(ScaleRule)),
    default="mse",
    show_default=True,
    help="From each block's largest entry, or searched for the least squared error.",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def pack(
    source: str,
    output: Path,
    revision: str | None,
    bits: str,
    embedding_bits: str,
    block_size: str,
    symmetric: bool,
    scale_rule: ScaleRule,
    force: bool,
) -> None:
    """Quantize SOURCE, a Hugging Face checkpoint directory or a hub id, into a base pack."""
    check_directory(output, replace=MANIFEST if force else None)  # before a checkpoint is fetched and read
    chosen_bits = default_bits(source, revision) if bits == "auto" else int(bits)
    quantization = Quantization(
        bits=chosen_bits,
        embedding_bits=int(embedding_bits),
        block_size=largest_block_size(source, revision) if block_size == "auto" else int(block_size),
        symmetric=symmetric,
    )
    console = Terminal(stderr=True)
    last = time.monotonic()

    def told(what: str, status: Status) -> None:
        """In a terminal at once, elsewhere once a minute."""
        nonlocal last
        status.update(what)
        if not console.is_terminal and time.monotonic() - last >= _LINE_S:
            last = time.monotonic()
            console.print(what, highlight=False, markup=False, soft_wrap=True)

    if bits == "auto" and chosen_bits == 8:
        console.print(f"{source}: {_WHY_8}", highlight=False, soft_wrap=True, markup=False)
    with console.status("packing") as status:
        make_pack(
            source,
            output,
            quantization,
            scale_rule=scale_rule,
            revision=revision,
            replace=force,
            progress=lambda name: told(f"packing {name}", status),
            tell=lambda sentence: console.print(sentence, highlight=False, soft_wrap=True, markup=False),
        )
        made = open_pack(output)
    size = (output / WEIGHTS).stat().st_size
    console.print(f"{output}: {size / 1e6:.2f} MB, fingerprint {made.fingerprint}", highlight=False, soft_wrap=True)
