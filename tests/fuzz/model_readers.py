"""Readers of what makes a model: checkpoints, packs, tokenizers, chat templates, adapters, graphs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from fedlora.base.checkpoint import Checkpoint
from fedlora.base.pack import fingerprint_of, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization
from fedlora.data.chat_template import load_chat_template
from fedlora.data.examples import ChatMessage
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.inputs import input_shapes
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft
from fedlora.peft.for_base import adapter_of, whole_adapter_of

from tests.fuzz.reader import TEMPLATE, Reader, files_reader, full_base, full_checkpoint, written
from tests.tiny.adapters import adapter_on
from tests.tiny.kinds import KINDS, adapter_of_kind

TEXTS = ("", "a b", "the quick brown fox, 12 times; \u00e9\u4e2d\U0001f600\n\n\tx", "</s><s> <unk>", "a" * 3000)
RENDERED = (
    ChatMessage("system", "be brief"),
    ChatMessage("user", "hello {{ 1 }}"),
    ChatMessage("assistant", "yes"),
)


def checkpoints(folder: Path) -> Reader:
    def read(place: Path) -> None:
        output = place.parent / "packed"
        shutil.rmtree(output, ignore_errors=True)
        Checkpoint(place)
        make_pack(place, output, Quantization(block_size=32))
        open_pack(output)

    return files_reader(full_checkpoint(folder / "checkpoint"), read)


def encoders(folder: Path) -> Reader:
    """An encoder with sentence-transformers' files beside it."""
    from fedlora_client.data.tokenizer import open_tokenizer

    from tests.tiny.encoders import save_encoder
    from tests.tiny.sentences import write_modules

    checkpoint = folder / "encoder"
    save_encoder("bare bert", checkpoint)
    write_modules(
        checkpoint,
        pooling={"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True},
        transformer={"max_seq_length": 16, "do_lower_case": True},
        sentences={"prompts": {"query": "query: "}, "default_prompt_name": "query"},
        dense=[(64, 32, "torch.nn.modules.activation.Tanh", True)],
    )

    def read(place: Path) -> None:
        output = place.parent / "packed-encoder"
        shutil.rmtree(output, ignore_errors=True)
        make_pack(place, output, Quantization(bits=8, block_size=32))
        open_tokenizer(open_pack(output).directory).encode("some text")

    return files_reader(checkpoint, read)


def packs(folder: Path, *, signed: bool) -> Reader:
    from fedlora_serve.text.model_defaults import model_defaults
    from fedlora_serve.text.tokenizer import open_tokenizer

    base = full_base(folder)

    def read(place: Path) -> None:
        pack = open_pack(place)
        for module in pack.model.linear_modules() | pack.model.vocabulary_modules():
            pack.matrix(module)
        load_chat_template(place)
        model_defaults(pack)
        open_tokenizer(place).encode(TEXTS[2])

    names = sorted(path.name for path in base.directory.iterdir())
    return Reader(base.directory, names, lambda place, _: read(place), _sign if signed else None)


def _sign(place: Path, name: str) -> None:
    """base.json agrees with the file, and its fingerprint with it, where it still has a place for them."""
    try:
        manifest = json.loads((place / "base.json").read_bytes())
        if name != "base.json":
            manifest["files"][name] = hashlib.sha256((place / name).read_bytes()).hexdigest()
        manifest["fingerprint"] = fingerprint_of(manifest)
        (place / "base.json").write_text(json.dumps(manifest), encoding="utf-8")
    except (ValueError, TypeError, AttributeError, RecursionError, KeyError, OSError):
        return  # no longer an object: read as it is


def tokenizers(folder: Path) -> Reader:
    """One tokenizer of each kind; only the one that was changed is opened, and told texts."""
    from fedlora_serve.text.tokenizer import decoded, open_tokenizer, tokens_of

    from tests.tiny.tokenizer_kinds import KINDS, write_tokenizer

    for number, kind in enumerate(KINDS):
        write_tokenizer(kind, folder / "tokenizers" / str(number))

    def read(place: Path, name: str) -> None:
        tokenizer = open_tokenizer((place / name).parent)
        for text in TEXTS:
            tokens = tokens_of(tokenizer, text, add_special_tokens=True, at_most=1000)
            decoded(tokenizer, tokens[:2000])

    names = [f"{number}/tokenizer.json" for number in range(len(KINDS))]
    return Reader(folder / "tokenizers", names, read)


def chats(folder: Path) -> Reader:
    def read(place: Path) -> None:
        template = load_chat_template(place)
        if template is not None:
            template.text(RENDERED, "here", add_generation_prompt=True)

    names = ("chat_template.jinja", "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json")
    return files_reader(full_checkpoint(folder / "chats"), read, *names)


def peft(folder: Path) -> Reader:
    base = full_base(folder)
    modules = base.model.linear_modules()
    config = LoraConfig(rank=2, alpha=4.0, target_modules=("q_proj", "up_proj"), rank_pattern={next(iter(modules)): 3})
    content = PeftDirectory(adapter=adapter_on(config, modules), base_fingerprint=base.fingerprint)
    write_peft(folder / "adapter", content)
    written(
        folder / "adapter",
        {
            "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE, "eos_token": "</s>"}),
            "generation_config.json": json.dumps({"eos_token_id": [2]}),
        },
    )

    def read(place: Path) -> None:
        from fedlora.data.adapter_chat import adapter_chat_settings

        read_peft(place)
        adapter_of(place, base)
        adapter_chat_settings(place)

    return files_reader(folder / "adapter", read)


def kinds(folder: Path) -> Reader:
    """An adapter of every other kind, as whoever can compute with it reads it, and one that has plain LoRA of it made."""
    base = full_base(folder)
    for kind in KINDS:
        content = PeftDirectory(adapter=adapter_of_kind(kind, base), base_fingerprint=base.fingerprint)
        write_peft(folder / "kinds" / kind, content)

    def read(place: Path, name: str) -> None:
        whole_adapter_of((place / name).parent, base)
        adapter_of((place / name).parent, base, any_kind=True)

    names = sorted(path.relative_to(folder / "kinds").as_posix() for path in (folder / "kinds").rglob("*.*"))
    return Reader(folder / "kinds", names, read)


def adapter_files(folder: Path) -> Reader:
    from fedlora_export.adapter_export import write_onnx_adapter

    base = full_base(folder)
    modules = base.model.linear_modules()
    (folder / "file").mkdir()
    path = folder / "file" / "a.onnx_adapter"
    write_onnx_adapter(adapter_on(LoraConfig(rank=2, target_modules=("q_proj",)), modules), base.fingerprint, path)

    def read(place: Path) -> None:
        load_adapter_file(place / path.name, base_fingerprint=base.fingerprint, inputs=input_shapes(modules))

    return files_reader(path.parent, read)


def graphs(folder: Path) -> Reader:
    """An exported folder, as `fedlora verify` looks into it."""
    from fedlora_export.checks.verify import verify_folder
    from fedlora_export.export import export_base

    base = full_base(folder)
    export_base(base, folder / "exported", profiles=("compat",))
    return files_reader(folder / "exported", lambda place: list(verify_folder(place)))
