"""Why an adapter has factors of a module that takes none here: what the module is, and what to do."""

from __future__ import annotations

from collections.abc import Iterable

from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError
from fedlora.family import EMBEDDING, HEAD, DecoderShape
from fedlora.peft.layout import PREFIX, WEIGHTS

_POOLER = "pooler.dense"  # BERT's and RoBERTa's, which a base without labels has no use for


def check_modules(modules: Iterable[str], base: BasePack, where: str) -> None:
    """Raise AdapterMismatchError for a module that the base has, or has by another name, and that takes no adapter.

    A module that it does not have at all is for whoever compares names and shapes.
    """
    known, prefix = base.model.linear_modules(), f"{base.model.base_prefix}."
    floats = base.model.float_tensors()
    strange = [module for module in modules if module not in known]
    for module in strange:
        if isinstance(base.model, DecoderShape) and module in (HEAD, EMBEDDING):
            raise AdapterMismatchError(
                f"{where}: has LoRA on {module}, which is not supported; train again without "
                f"{module.rsplit('.', 1)[-1]} among target_modules"
            )
        other = module.removeprefix(prefix) if module.startswith(prefix) else prefix + module
        if other in known:
            raise AdapterMismatchError(f"{where}: {_renaming(module, other, prefix)}")
    for module in strange:
        if f"{module}.weight" in floats:
            raise AdapterMismatchError(
                f"{where}: has LoRA on {module}, which does not train here: it belongs to the head; train again with "
                f"exclude_modules={[module]} in LoraConfig"
            )
        if module.endswith(_POOLER):
            raise AdapterMismatchError(
                f"{where}: has LoRA on {module}, which no embedding of this base comes from; take it out by running this "
                f"in the adapter's folder: python -c \"from safetensors.torch import load_file, save_file; f = "
                f"'{WEIGHTS}'; save_file({{k: v for k, v in load_file(f).items() if '.{_POOLER}.' not in k}}, f, "
                "metadata={'format': 'pt'})\""
            )


def _renaming(module: str, other: str, prefix: str) -> str:
    """What is said where the model was trained with its head and the base has none, or the other way round."""
    longer, shorter = PREFIX + prefix, PREFIX
    before, after = (shorter, longer) if len(other) > len(module) else (longer, shorter)
    how = "without a head (AutoModel)" if len(other) > len(module) else "with a head"
    return (
        f"names {module}, as in a model {how}, and this base calls it {other}; if it was trained on the same weights, "
        f"rename its tensors by running this in the adapter's folder: python -c \"from safetensors.torch import load_file, "
        f"save_file; f = '{WEIGHTS}'; save_file({{k.replace('{before}', '{after}', 1): v for k, v in "
        "load_file(f).items()}, f, metadata={'format': 'pt'})\""
    )
