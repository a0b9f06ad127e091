"""What stands beside the products: classification heads, and the tensors of kinds without products. sum_i w_i t_i.

A head is whole, and not an update: where weights add up to 1 their sum is a mean of heads. PEFT (0.21) refuses adapters of
which several have one; here each must have it, for as many labels.

IA3's sum is PEFT's (`IA3Model.add_weighted_adapter`), with weights of any sum; PEFT scales a module that one adapter lacks
by the others' weights alone, which is refused here. Of what is not linear in its numbers (prompts, prefixes, the vectors of
VeRA) there is a mean and no sum: PEFT has none, and weights must add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedlora.base.pack import BasePack
from fedlora.combine.sources import Source, WholeAdapter
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.kinds import heads_in, kind_of, own_in
from fedlora.peft.for_base import beside_of, check_is_for
from fedlora.peft.tensors import model_tensor

_ROUNDED = 1e-6  # by which a sum of weights may miss 1


def combined_heads(sources: Sequence[Source], weights: Sequence[float], base: BasePack | None) -> Extras:
    """The heads' weighted sum; none where no adapter has one, or with a base where none of them trained.

    Raises AdapterMismatchError where one has other tensors than the first, or trained modules that are no head.
    """
    heads, all_are_own = [], base is not None
    for source in sources:
        content, where = source.beside(), str(source.directory)
        trained = beside_of(content, base, where, heads=True).replaced
        if others := trained.keys() - content.heads.keys():
            names = ", ".join(sorted(map(model_tensor, others))[:4])
            remedy = (
                "train again without them" if base else "pass --base PACK, and those that did not train are left out"
            )
            raise AdapterMismatchError(
                f"{where}: also holds {names} beside A and B, which cannot be combined; {remedy}"
            )
        heads.append(heads_in(content.adapter))
        all_are_own = all_are_own and not trained
    if all_are_own:
        return {}
    for source, head in zip(sources, heads, strict=True):
        if _shapes(head) != _shapes(heads[0]):
            raise AdapterMismatchError(
                f"{source.directory}: has {_told(head)}, and {sources[0].directory} has {_told(heads[0])}; heads add up "
                "where each adapter has one, for as many labels: combine such adapters"
            )
    return summed(heads, weights)


def combined_own(sources: Sequence[Source], weights: Sequence[float], base: BasePack | None) -> Adapter:
    """The adapter of one kind whose tensors, and head, are the weighted sums of those of `sources`.

    Raises AdapterMismatchError for adapters whose tensors do not stand for the same, ConfigError for weights of which there
    is no sum.
    """
    first = sources[0]
    kind = kind_of(first.config)
    if not kind.mean_is_exact and abs(sum(weights) - 1) > _ROUNDED:
        instead = ", or take --how cat or svd, with --base PACK" if kind.is_lora else ""
        raise ConfigError(
            f"--weights: add up to {sum(weights):g}; {kind.title} is not linear in its numbers, so it has a mean and no "
            f"other sum; give weights that add up to 1{instead}"
        )
    for source in sources:
        assert isinstance(source, WholeAdapter)
        where = str(source.directory)
        if base is not None:
            check_is_for(source.content, base, where)
        if source.config.projection_prng_key != first.config.projection_prng_key:
            raise AdapterMismatchError(
                f"{where}: its A and B are made of projection_prng_key = {source.config.projection_prng_key}, those of "
                f"{first.directory} of {first.config.projection_prng_key}; vectors for other matrices have no mean: take "
                "--how cat or svd, with --base PACK"
            )
    own = [own_in(source.content.adapter) for source in sources if isinstance(source, WholeAdapter)]
    for source, tensors in zip(sources, own, strict=True):
        if (theirs := _shapes(tensors)) != (mine := _shapes(own[0])):
            odd = min(name for name in {*theirs, *mine} if theirs.get(name) != mine.get(name))
            raise AdapterMismatchError(
                f"{source.directory}: {odd} is {_shape(theirs.get(odd))}, in {first.directory} it is "
                f"{_shape(mine.get(odd))}; {kind.title} adds up number by number, which needs equal ones: combine "
                "adapters of the same modules and sizes"
            )
    heads = combined_heads(sources, weights, base)
    adapter = Adapter(first.config, {}, extras={**summed(own, weights), **heads})
    adapter.check_finite("the combination")
    return adapter


def summed(tensors: Sequence[Extras], weights: Sequence[float]) -> Extras:
    """sum_i w_i t_i by name; each has the same names and shapes."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            name: np.asarray(
                sum(each[name] * np.float32(weight) for each, weight in zip(tensors, weights, strict=True)), np.float32
            )
            for name in tensors[0]
        }


def _shapes(tensors: Extras) -> Mapping[str, tuple[int, ...]]:
    return {name: value.shape for name, value in tensors.items()}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))


def _told(head: Extras) -> str:
    named = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(head.items())[:4])
    return f"a head with {named}" if named else "no head"
