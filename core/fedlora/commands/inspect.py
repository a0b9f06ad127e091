"""`fedlora inspect`: what a pack, an adapter or an update holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from fedlora.base.checkpoint import Checkpoint
from fedlora.base.pack import CONFIG as MODEL_CONFIG
from fedlora.base.pack import EMBEDDED, MANIFEST, WEIGHTS, BasePack, find_pack, open_pack
from fedlora.commands.exported_facts import exported_facts
from fedlora.data.adapter_chat import adapter_chat_settings
from fedlora.errors import ConfigError, UpdateError, printable
from fedlora.exported.adapter_file import SUFFIX, read_adapter_file
from fedlora.family import HEAD, DecoderShape, EncoderShape
from fedlora.files.bounded import read_open
from fedlora.files.file_kind import kind_of
from fedlora.files.hub import commit_of
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.algebra import inner_product
from fedlora.lora.kinds import adapted_modules, own_in
from fedlora.lora.kinds import kind_of as adapter_kind
from fedlora.lora.kinds.kind import word_of
from fedlora.peft.directory import CONFIG, PeftDirectory, read_peft
from fedlora.peft.finding import check_adapter, find_adapter
from fedlora.peft.layout import HEADS
from fedlora.peft.missing import told_instead
from fedlora.peft.tensors import Stored, model_tensor
from fedlora.wire.update import MAX_BEGIN_BYTES, Update, check_length, decode_update

Facts = dict[str, object]
_MAX_UPDATE_BYTES = 1 << 32


@click.command()
@click.argument("path", type=click.Path())
def inspect(path: str) -> None:
    """Show what PATH holds: the directory of a base pack, a checkpoint or a PEFT adapter, a file with one update, or an
    adapter file (.onnx_adapter)."""
    place = find_pack(path)
    if not place.exists():
        check_adapter(path, (EMBEDDED,))
        place = find_adapter(path)
    if (place / MANIFEST).is_file():
        _show(f"base pack {place}", _pack_facts(open_pack(place)))
    elif (place / CONFIG).is_file():
        content = read_peft(place, any_kind=True)
        base = content.base_fingerprint or f"not recorded ({content.config.get('base_model_name_or_path')})"
        stored: Facts = {"base": base, "stored as": content.dtype}
        stored |= {"revision": commit} if (commit := commit_of(place)) else {}
        about = stored | _origin_facts(content) | _beside_facts(content) | _chat_facts(place)
        _show(f"adapter {place}", _adapter_facts(content.adapter) | about)
    elif place.suffix == SUFFIX and place.is_file():
        _show(f"adapter file {place}", exported_facts(read_adapter_file(place)))
    elif (place / MODEL_CONFIG).is_file():
        _show(f"checkpoint {place}", _checkpoint_facts(Checkpoint(place)))
    elif place.is_file():
        try:
            update = _read_update(place)
        except UpdateError as error:
            found = kind_of(place)
            told = f"{place}: {error}"
            if found is not None and not found.is_text:
                told = found.instead_of(place, "a base pack, a checkpoint, a PEFT adapter or an update")
            raise UpdateError(error.reason, told) from None
        facts: Facts = {
            "run": update.run,
            "round": update.server_round,
            "examples": update.num_examples,
            "base": update.base_fingerprint,
            "metrics": ", ".join(f"{name} {value:.6g}" for name, value in update.metrics.items()),
        }
        _show(f"update {place}", facts | _adapter_facts(update.adapter))
    else:
        raise ConfigError(
            f"{place}: neither a base pack ({MANIFEST}), nor a PEFT adapter ({CONFIG}), nor an update; "
            f"{told_instead(place)}"
        )


def _read_update(path: Path) -> Update:
    """Read whole only where its length is the one that its header tells: a file with holes takes no room until then."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
    with os.fdopen(descriptor, "rb") as file:
        check_length(file.read(MAX_BEGIN_BYTES) or b"", os.fstat(descriptor).st_size)
        file.seek(0)
        return decode_update(read_open(file, path, _MAX_UPDATE_BYTES))


def _checkpoint_facts(checkpoint: Checkpoint) -> Facts:
    model = checkpoint.shape
    facts: Facts = {
        "model": f"{model.model_type}, {'a decoder' if isinstance(model, DecoderShape) else 'an encoder'}",
        "layers": model.num_layers,
        "hidden / inner size": f"{model.hidden_size} / {model.intermediate_size}",
    }
    facts |= _decoder_facts(model) if isinstance(model, DecoderShape) else _encoder_facts(model)
    notes: Facts = {"note": "; ".join(checkpoint.notes)} if checkpoint.notes else {}
    return (
        facts | notes | {"not packed yet": f"make a base of it with: fedlora pack {checkpoint.directory} -o DIRECTORY"}
    )


def _pack_facts(pack: BasePack) -> Facts:
    model, quantization = pack.model, pack.quantization
    parameters = sum(rows * columns for rows, columns in (model.linear_modules() | model.vocabulary_modules()).values())
    stored: Facts = {
        "fingerprint": pack.fingerprint,
        "source": pack.source,
        **({"revision": pack.revision} if pack.revision else {}),
        "weights": f"{(pack.directory / WEIGHTS).stat().st_size / 1e6:.2f} MB for {parameters / 1e6:.2f} M parameters",
        "quantization": f"{quantization.bits} bits, block {quantization.block_size}, "
        f"{'symmetric' if quantization.symmetric else 'asymmetric'}; embedding {quantization.embedding_bits} bits",
        "scales": pack.scales or "not recorded",
        "model": f"{model.model_type}, {'a decoder' if isinstance(model, DecoderShape) else 'an encoder'}",
        "layers": model.num_layers,
        "hidden / inner size": f"{model.hidden_size} / {model.intermediate_size}",
    }
    return stored | (_decoder_facts(model) if isinstance(model, DecoderShape) else _encoder_facts(model))


def _decoder_facts(shape: DecoderShape) -> Facts:
    return {
        "heads": f"{shape.num_heads}, {shape.num_kv_heads} for keys and values, of {shape.head_dim}",
        "vocabulary": f"{shape.vocab_size}{', tied head' if shape.tie_word_embeddings else ''}",
        "context": shape.max_positions,
    }


def _encoder_facts(shape: EncoderShape) -> Facts:
    some = ", ".join(shape.labels[:8]) + (", ..." if len(shape.labels) > 8 else "")
    return {
        "heads": f"{shape.num_heads} of {shape.head_dim}",
        "vocabulary": shape.vocab_size,
        "context": shape.max_positions,
        "labels": f"{len(shape.labels)}: {some}" if shape.labels else "none: it gives embeddings",
    } | ({} if shape.labels else {"embedding": _steps(shape)})


def _steps(shape: EncoderShape) -> str:
    """How a text becomes a vector."""
    steps = shape.embedding
    said = [f"{steps.pooling.replace('_', ' ')} of the tokens, {shape.embedding_size} numbers"]
    said += ["served at length 1"] if steps.normalized else ["served at its own length"]
    said += [f"texts cut to {steps.max_tokens} tokens"] if steps.max_tokens else []
    said += ["in lower case"] if steps.lower_case else []
    said += [f"after {steps.prompt!r:.60}"] if steps.prompt else []
    return ", ".join(said)


def _adapter_facts(adapter: Adapter) -> Facts:
    config, kind, own = adapter.config, adapter_kind(adapter), own_in(adapter)
    ranks = sorted({pair.rank for pair in adapter.pairs.values()}) or [config.rank]
    alpha = f"{config.alpha:g}{' (rsLoRA)' if config.use_rslora else ''}"
    facts = {
        "method": kind.title,
        **({"rank": ", ".join(map(str, ranks))} if "rank" in kind.keys else {}),
        **({"alpha": alpha} if "alpha" in kind.keys else {}),
        **({"virtual tokens": config.num_virtual_tokens} if kind.is_virtual else {}),
        **({"targets": ", ".join(config.target_modules)} if "target_modules" in kind.keys else {}),
        **({"layers": ", ".join(map(str, config.layers))} if config.layers else {}),
        **({} if kind.is_virtual else {"modules": len(adapted_modules(adapter))}),
        "parameters": f"{adapter.size_bytes // 4:,}",
    }
    if own:
        facts |= {word: f"{of_word[0]:.4g} to {of_word[-1]:.4g}" for word, of_word in _ranges(own)}
    if adapter.pairs:
        facts["norm of B A"] = f"{sum(_squared_norm(adapter, module) for module in adapter.pairs) ** 0.5:.4g}"
    return facts


def _ranges(own: Extras) -> Iterator[tuple[str, tuple[float, float]]]:
    """(a word of the kind, the least and the greatest number of its tensors)"""
    for word in dict.fromkeys(map(word_of, own)):
        arrays = [array for name, array in own.items() if word_of(name) == word]
        yield word, (min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays))


def _origin_facts(content: PeftDirectory) -> Facts:
    """The adapters that it was made of."""
    if content.origin is None:
        return {}
    return {"made by": content.origin.how, "made of": ", ".join(map(str, content.origin.parts))}


def _beside_facts(content: PeftDirectory) -> Facts:
    """The tensors beside A and B, and what they are for whoever uses the adapter."""
    facts: Facts = {}
    if content.heads:
        facts["head"] = f"{_tensors(content.heads)}: its own, in place of the base's"
    if content.saved_modules:
        facts["also trained"] = f"{_tensors(content.saved_modules)} (modules_to_save), which only training can take"
    if content.embeddings:
        facts["also stored"] = (
            f"{_tensors(content.embeddings)} (save_embedding_layers); with a base, those that did not train are left out; "
            "save with save_embedding_layers=False to do without them"
        )
    unsupported = [module for module in content.adapter.pairs if module.rsplit(".", 1)[-1] in (HEAD, *HEADS)]
    if unsupported:
        facts["not supported"] = f"LoRA on {', '.join(unsupported)}: train without it among target_modules"
    return facts


def _chat_facts(place: Path) -> Facts:
    """How the adapter is spoken to, where its training says so."""
    chat = adapter_chat_settings(place)
    ends = [chat.special_tokens[name] for name in ("eos_token",) if name in chat.special_tokens]
    told = {"chat template": chat.place, "answers end with": ", ".join([*ends, *map(str, chat.eos_token_ids)])}
    return {name: value for name, value in told.items() if value}


def _tensors(tensors: Mapping[str, Stored]) -> str:
    by_name = {model_tensor(name): array.shape for name, (_, array) in tensors.items()}
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in by_name.items())


def _squared_norm(adapter: Adapter, module: str) -> float:
    product = adapter.product(module)
    return max(0.0, inner_product(product, product))


def _show(title: str, facts: Facts) -> None:
    click.echo(title)
    for name, value in facts.items():
        # What a stranger wrote is shown, not obeyed: a line break in a name must not forge a line.
        click.echo(f"  {name:<22}{printable(str(value))}")
