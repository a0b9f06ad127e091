"""How a model's own generation_config.json wants its tokens to be chosen, where nobody says otherwise.

What vLLM takes from it by default is taken here: temperature, top_p, top_k, min_p, repetition_penalty and max_new_tokens.
As in transformers the first four count only where `do_sample` is not false. (Its end tokens are the base's, always.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fedlora.base.pack import GENERATION_CONFIG, BasePack, read_manifest
from fedlora.errors import ConfigError, PackError
from fedlora.files.documents import read_object

from fedlora_serve.text.sampling import Sampling

GENERATION_CONFIG_CHOICES = ("auto", "none")
_SAMPLED = ("temperature", "top_p", "top_k", "min_p")
_NAMES = (*_SAMPLED, "repetition_penalty", "max_new_tokens")
# What changes an answer in transformers, and is not done here: told where it is set to another value than these.
_NOT_DONE: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "num_beams": (None, 1), "num_beam_groups": (None, 1), "penalty_alpha": (None, 0, 0.0), "typical_p": (None, 1, 1.0),
        "epsilon_cutoff": (None, 0, 0.0), "eta_cutoff": (None, 0, 0.0), "no_repeat_ngram_size": (None, 0),
        "min_length": (None, 0), "min_new_tokens": (None, 0), "bad_words_ids": (None, []), "suppress_tokens": (None, []),
        "begin_suppress_tokens": (None, []), "sequence_bias": (None, {}), "stop_strings": (None, []),
        "forced_bos_token_id": (None,), "forced_eos_token_id": (None,), "guidance_scale": (None, 1, 1.0),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What stands for a parameter that a request leaves out."""

    values: Mapping[str, float] = field(default_factory=dict)  # by the names of `Sampling`
    notes: tuple[str, ...] = ()  # what of the file is not used, a sentence each

    @property
    def max_tokens(self) -> int | None:
        most = self.values.get("max_tokens")
        return None if most is None else int(most)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.values.items())


def model_defaults(base: BasePack) -> ModelDefaults:
    """What the base's generation_config.json says. A value that makes no sense is not used, and told."""
    if GENERATION_CONFIG not in read_manifest(base.directory)["files"]:
        return ModelDefaults()
    path = base.directory / GENERATION_CONFIG
    config = read_object(path, PackError, "a model's generation_config.json")
    values: dict[str, float] = {}
    notes: list[str] = []
    for name in _NAMES:
        value = config.get(name)
        if value is None or (name in _SAMPLED and config.get("do_sample") is False):
            continue
        field_name = "max_tokens" if name == "max_new_tokens" else name
        if name == "top_k" and value == -1:
            value = 0
        if _is_sound(field_name, value):
            values[field_name] = value
        else:
            notes.append(f"{path.name}: {name} {value!r:.40} makes no sense, and is not used")
    unused = [name for name, plain in _NOT_DONE.items() if config.get(name) not in plain]
    if unused:
        notes.append(f"{path.name}: {', '.join(unused)} {'is' if len(unused) == 1 else 'are'} not used here")
    return ModelDefaults(values, tuple(notes))


def _is_sound(name: str, value: object) -> bool:
    whole = name in ("top_k", "max_tokens")
    if type(value) is not int and (whole or type(value) is not float):
        return False
    try:
        Sampling(**{name: value})  # type: ignore[arg-type]
    except ConfigError:
        return False
    return True
