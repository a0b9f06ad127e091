"""What a reader is here: a folder of sound files, what reads it, and a tiny base that many need."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.base.pack import BasePack

from tests.tiny.checkpoints import llama_config, tiny_pack, write_checkpoint

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\n{{ message['content'] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads a folder; `names` are the files of it that are changed."""

    folder: Path
    names: Sequence[str]
    read: Callable[[Path, str], object]  # the folder, and the file that was changed
    sign: Callable[[Path, str], None] | None = None  # makes the digests in the folder agree with the file
    are_messages: bool = False  # what is read are bytes, and no other thing can lie in a file's place
    slow_s: float = 5.0  # of processor time, past which a reading is a finding


def files_reader(folder: Path, read: Callable[[Path], object], *only: str) -> Reader:
    names = only or sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Reader(folder, names, lambda place, _: read(place))


def written(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def full_checkpoint(folder: Path) -> Path:
    """A tiny Llama with everything that may lie beside its weights."""
    checkpoint = write_checkpoint(folder, config=llama_config(max_position_embeddings=512), shards=2)
    special = {"eos_token": {"content": "</s>", "special": True}, "bos_token": "<s>"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "add_bos_token": True,
        **special,
    }
    return written(
        checkpoint,
        {
            "tokenizer_config.json": json.dumps(settings),
            "special_tokens_map.json": json.dumps(special),
            "generation_config.json": json.dumps({"eos_token_id": [2], "top_p": 0.9, "do_sample": True}),
            "chat_template.jinja": TEMPLATE,
            "additional_chat_templates/tool_use.jinja": TEMPLATE,
        },
    )  # fmt: skip


def full_base(folder: Path) -> BasePack:
    return tiny_pack(folder / "base", full_checkpoint(folder / "base-checkpoint"))
