"""`fedlora combine`: several adapters become one."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

import click

from fedlora.base.pack import EMBEDDED, open_pack
from fedlora.combine.combining import Combined
from fedlora.combine.combining import combine as combine_adapters
from fedlora.combine.sources import kind_at, usual_way
from fedlora.combine.ways import WAYS, Combination, SignMethod, Way
from fedlora.counted import counted
from fedlora.errors import ConfigError
from fedlora.lora.kinds import kind_of
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter, find_adapter


class _Way(click.Choice[str]):
    """The ways, with PEFT's underscores too."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(super().convert(str(value).replace("_", "-"), param, ctx))


@click.command()
@click.argument("adapters", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PEFT directory that is made.")
@click.option(
    "--weights", metavar="W,W", help="One for each adapter; a negative one takes it away.  [default: 1/N each]"
)
@click.option(
    "--how", type=_Way(WAYS),
    help="As PEFT's combination_type. cat is exact and adds ranks, svd the best of one rank.  [default: svd, and linear of "
    "adapters without products]",
)  # fmt: skip
@click.option("--density", type=float, help="Of ties, dare-* and magnitude-prune: the part of the entries that stays.")
@click.option(
    "--majority-sign", type=click.Choice(get_args(SignMethod)),
    help="Of ties and dare-ties: elect by sums of entries, or of signs.  [default: total]",
)  # fmt: skip
@click.option("--svd-rank", type=int, help="Of ways that end in svd.  [default: the largest of the adapters']")
@click.option("--seed", type=int, help="Of what dare drops.  [default: 0]")
@click.option("--base", help="The base pack, where the adapters do not record their own.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def combine(
    adapters: tuple[str, ...], output: Path, weights: str | None, how: str | None, density: float | None,
    majority_sign: str | None, svd_rank: int | None, seed: int | None, base: str | None, force: bool,
) -> None:  # fmt: skip
    """Combine ADAPTERS of one base, PEFT directories or hub ids, into one adapter."""
    numbers = _weights(weights, len(adapters))
    for adapter in adapters:
        check_adapter(adapter)
    combination = Combination(
        weights=numbers, how=cast(Way, how) if how else usual_way([kind_at(find_adapter(each)) for each in adapters]),
        density=density, majority_sign_method=cast("SignMethod | None", majority_sign), svd_rank=svd_rank, seed=seed,
    )  # fmt: skip
    if base is not None:
        check_there(base, (EMBEDDED,))
    made = combine_adapters(
        adapters, output, combination, base=None if base is None else open_pack(base), replace=force
    )
    for name in made.differing:
        click.echo(f"{name} is not the same in all adapters: none is kept; copy the one to speak with", err=True)
    told = f"{output}: {combination}; {_what(made)}"
    if made.distance is not None:
        told += f"; {made.distance:.2%} of the weighted sum's norm away from it"
    click.echo(told, err=True)
    click.echo(output)


def _what(made: Combined) -> str:
    kind = kind_of(made.config)
    if kind.is_virtual:
        return f"{kind.title} of {counted(made.config.num_virtual_tokens, 'virtual token')}"
    if not kind.has_factors:
        return f"{kind.title} of {counted(made.modules, 'module')}"
    ranks = sorted({made.config.rank, *made.config.rank_pattern.values()})
    return f"{counted(made.modules, 'module')} of rank {', '.join(map(str, ranks))}"


def _weights(text: str | None, count: int) -> tuple[float, ...]:
    if text is None:
        return (1 / count,) * count
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--weights: expected numbers with commas between them, such as 0.7,0.3, got {text!r:.80}"
        ) from None
