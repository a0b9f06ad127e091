"""What sentence-transformers keeps beside an encoder's weights: read, or refused by name.

modules.json                            which steps there are, and in which folders
sentence_bert_config.json               how long a text may be, and whether it is made lower case
config_sentence_transformers.json       prompts, one of which may stand before every text
1_Pooling/config.json, 2_Dense/...      a step's own
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedlora.errors import CheckpointError
from fedlora.family import EncoderShape
from fedlora.family.sizes import switch, whole
from fedlora.family.text_embedding import Activation, DenseLayer, Pooling, TextEmbedding
from fedlora.files.bounded import read_bounded
from fedlora.files.documents import read_object
from fedlora.files.json_text import parse_json

MODULES = "modules.json"
_MAX_MODULES_BYTES = 1 << 20
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The switches of a pooling module, and the names of its later versions.
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len", "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}  # fmt: skip
_POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls", "mean": "mean", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceModules:
    """How texts become vectors, and where the weights of its dense layers lie."""

    embedding: TextEmbedding
    dense_files: tuple[Path, ...]
    notes: tuple[str, ...]


def sentence_root(directory: Path) -> Path | None:
    """The folder with the modules.json that speaks of the checkpoint `directory`: itself, or the one above it."""
    if (directory / MODULES).is_file():
        return directory
    above = directory.resolve().parent
    if (above / MODULES).is_file() and _modules(above)[0][1] == directory.resolve().name:
        return above
    return None


def read_sentence_modules(root: Path, transformer: Path, shape: EncoderShape) -> SentenceModules:
    """What `root` says of the encoder in the folder `transformer`. Raises CheckpointError for a step that is not known."""
    modules = _modules(root)
    where = root / MODULES
    kinds = [kind for kind, _ in modules]
    order = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * kinds.count("Normalize")]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if unknown:
        raise _refused(where, f"the step {unknown[0]!r:.60}, which fedlora does not compute")
    if kinds != order or kinds.count("Normalize") > 1:
        raise _refused(
            where, f"the steps {', '.join(kinds)}; expected Transformer, Pooling, and then Dense and Normalize"
        )
    notes: list[str] = []
    pooling_config = _config(root, modules[1][1])
    prompt = _prompt(root, notes)
    if prompt and not _switch(pooling_config, "include_prompt", root / modules[1][1], default=True):
        raise _refused(root / modules[1][1], "include_prompt false: the tokens of the prompt are not pooled")
    dense = [_dense(root, path) for kind, path in modules if kind == "Dense"]
    embedding = TextEmbedding(
        pooling=_pooling(pooling_config, root / modules[1][1]),
        dense=tuple(layer for layer, _ in dense),
        normalized="Normalize" in kinds,
        prompt=prompt,
        strips=True,
        **_text_fields(transformer, shape, notes),
    )
    try:
        embedding.check_fits(shape.hidden_size, shape.max_positions)
    except ValueError as error:
        raise _refused(where, f"steps that do not fit: {error}") from None
    return SentenceModules(embedding=embedding, dense_files=tuple(file for _, file in dense), notes=tuple(notes))


def _modules(root: Path) -> list[tuple[str, str]]:
    """[(the kind of a step, its folder)]"""
    path = root / MODULES
    try:
        listed = parse_json(read_bounded(path, _MAX_MODULES_BYTES))
        modules = [(str(module["type"]).rsplit(".", 1)[-1], str(module.get("path", ""))) for module in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no list of sentence-transformers' modules: {error!r:.120}; copy it again"
        ) from None
    outside = [
        folder for _, folder in modules if folder and (Path(folder).name != folder or "\0" in folder or folder == "..")
    ]
    if outside or not modules:
        raise CheckpointError(f"{path}: expected modules in folders of the checkpoint, got {outside or modules!r:.120}")
    return modules


def _refused(where: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: sentence-transformers has {what}, and the vectors would be others without; pack another model, or take "
        f"{MODULES} away to serve the mean of all tokens"
    )


def _switch(config: dict[str, Any], key: str, where: Path, *, default: bool = False) -> bool:
    """What a configuration says of a switch; null is as one that is not there. Raises CheckpointError."""
    try:
        return switch(config, key, default=default)
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}; correct it") from None


def _config(root: Path, folder: str) -> dict[str, Any]:
    return read_object(root / folder / "config.json", CheckpointError, "a module of sentence-transformers")


def _pooling(config: dict[str, Any], where: Path) -> Pooling:
    named = config.get("pooling_mode")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        unknown = [name for name in names if name not in _POOLING_NAMES]
        if unknown:
            raise _refused(where, f"the pooling {unknown[0]!r:.60}")
        chosen = [_POOLING_NAMES[name] for name in names]
    else:
        defaults = {key: key == "pooling_mode_mean_tokens" and key not in config for key in _POOLINGS}
        chosen = [_POOLINGS[key] for key, on in defaults.items() if _switch(config, key, where, default=on)]
        others = [key for key in config if key.startswith("pooling_mode_") and key not in _POOLINGS]
        others = [key for key in others if _switch(config, key, where)]
        if others:
            raise _refused(where, f"the pooling {others[0]!r:.60}")
    if len(chosen) != 1:
        raise _refused(where, f"{' and '.join(chosen) or 'no'} pooling at once")
    return chosen[0]


def _dense(root: Path, folder: str) -> tuple[DenseLayer, Path]:
    config = _config(root, folder)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise _refused(root / folder, f"a Dense with the activation {name!r:.60}")
    if _switch(config, "use_residual", root / folder):
        raise _refused(root / folder, "a Dense with a residual")
    file = root / folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(
            f"{file}: no such file, and the Dense of modules.json needs its weights as safetensors; save the model with "
            "sentence-transformers: SentenceTransformer(DIRECTORY).save(OTHER)"
        )
    try:
        layer = DenseLayer(
            in_features=whole(config["in_features"]), out_features=whole(config["out_features"]),
            biased=_switch(config, "bias", root / folder, default=True), activation=_ACTIVATIONS[name],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{root / folder}: not a sound Dense of sentence-transformers: {error!r}; copy it again"
        ) from None
    return layer, file


def _text_fields(transformer: Path, shape: EncoderShape, notes: list[str]) -> dict[str, Any]:
    """How a text is prepared: its longest length, lower case, which end is cut."""
    found = next((transformer / name for name in _TRANSFORMER_CONFIGS if (transformer / name).is_file()), None)
    config = read_object(found, CheckpointError, "the Transformer of sentence-transformers") if found else {}
    tokenizer = transformer / "tokenizer_config.json"
    told = read_object(tokenizer, CheckpointError, "a tokenizer's configuration") if tokenizer.is_file() else {}
    length = config.get("max_seq_length")
    if length is None:
        length = min(
            (n for n in [told.get("model_max_length")] if type(n) is int and n > 0), default=shape.max_positions
        )
    elif type(length) is not int or length < 1:
        raise CheckpointError(f"{found}: max_seq_length must be a number of tokens, got {length!r:.60}")
    elif length > shape.max_positions:
        notes.append(
            f"max_seq_length is {length}, and the model holds {shape.max_positions} tokens: texts are cut there"
        )
    return {
        "max_tokens": min(int(length), shape.max_positions),
        "lower_case": _switch(config, "do_lower_case", found or transformer),
        "cut_left": told.get("truncation_side") == "left",
    }


def _prompt(root: Path, notes: list[str]) -> str:
    """The prompt that stands before every text; those that a caller would have to name are told."""
    path = root / "config_sentence_transformers.json"
    config = read_object(path, CheckpointError, "the configuration of sentence-transformers") if path.is_file() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise CheckpointError(f"{path}: prompts must map names to texts")
    named = {name: prompt for name, prompt in prompts.items() if prompt and name != default}
    if named:
        shown = ", ".join(f"{name} {prompt!r:.60}" for name, prompt in list(named.items())[:4])
        notes.append(f"it has prompts for some texts, which the caller puts before them: {shown}")
    if default is None:
        return ""
    if default not in prompts:
        raise CheckpointError(
            f"{path}: default_prompt_name is {default!r:.60}, which is not among the prompts; "
            f"expected one of {', '.join(prompts) or 'none'}"
        )
    return cast(str, prompts[default])
