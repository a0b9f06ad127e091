"""What the engines of `bench_serve.py` load: a model, many adapters of it, and what each peer makes of both."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.base.packing import largest_block_size, make_pack
from fedlora.base.quantize import Quantization
from fedlora.exported.inputs import input_values
from fedlora.files.tensor_file import Dtype
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft

from export.artifacts import Artifacts, make_genai
from harness.checkpoints import CONFIGS, Config, make_checkpoint
from harness.process import WorkerError, measured_command, module_command
from serve.engine import ROWS

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K"
MODELS = ("135m", "stories")
# {set: the rank of each row's adapter}; all linear modules have one
RANKS: Mapping[str, Sequence[int]] = MappingProxyType(
    {"r8": [8] * ROWS, "r16": [16] * ROWS, "mixed": [4, 8, 16, 64, 8, 32, 4, 16, 12, 8, 48, 16, 4, 24, 8, 16]}
)
PEER_SETS: Mapping[str, int] = MappingProxyType({"r8": 8, "r16": 16})
# Our graphs, and the folder of each: the service takes `kernel` where a folder has both that and `rows`.
GRAPHS: Mapping[str, str] = MappingProxyType(
    {"base": "pack", "compat": "pack", "fast": "pack", "kernel": "pack", "rows": "pack-rows"}
)
_WITH_PEERS = ("genai-tuned", *(f"{kind}-{rank}" for rank in (8, 16) for kind in ("builder", "olive")), "llamacpp",
               *(f"llamacpp-{name}" for name in PEER_SETS))  # fmt: skip
_RESIDENT_RANK, _RESIDENT_MODULES = 8, ("q_proj", "v_proj")


def make_base(folder: Path, model: str, stories: Path) -> Artifacts:
    """The checkpoint, its packs with our graphs, and the adapters of each set."""
    artifacts = Artifacts(folder, frozenset((*GRAPHS, *_WITH_PEERS)))
    if model == "stories":
        shutil.copytree(stories, artifacts.checkpoint, copy_function=shutil.copyfile)
        artifacts.checkpoint.chmod(0o755)
    else:
        make_checkpoint(artifacts.checkpoint, CONFIGS["135M"])
        _write_tokenizer(artifacts.checkpoint, CONFIGS["135M"]["vocab_size"])
    source = str(artifacts.checkpoint)
    quantization = Quantization(block_size=largest_block_size(source), embedding_bits=8)
    make_pack(source, folder / "pack", quantization, scale_rule="max-abs")  # what is found faster is as fast to read
    (folder / "pack-rows").mkdir()
    for file in (folder / "pack").iterdir():
        os.link(file, folder / "pack-rows" / file.name)
    _make_graphs(artifacts)
    modules = list(artifacts.pack.shape.linear_modules())
    for name, ranks in RANKS.items():
        for number, rank in enumerate(ranks):
            write_adapter(artifacts.pack, adapter_path(folder, name, number), rank, modules, seed=number)
    return artifacts


def _make_graphs(artifacts: Artifacts) -> None:
    """All graphs of a folder at once, or one by one where one of them cannot be made."""
    for folder in dict.fromkeys(GRAPHS.values()):
        profiles = [profile for profile, place in GRAPHS.items() if place == folder]
        command = [Path(sys.executable).with_name("fedlora"), "export", artifacts.folder / folder]
        try:
            measured_command([str(part) for part in (*command, *(word for p in profiles for word in ("--profile", p)))])
            artifacts.made |= {profile: {} for profile in profiles}
        except WorkerError:
            for profile in profiles:
                artifacts.make(profile, [*command, "--profile", profile])


def adapter_path(folder: Path, name: str, number: int) -> Path:
    """Where an adapter of a set lies."""
    return folder / "adapters" / name / str(number)


def write_adapter(
    pack: BasePack, path: Path, rank: int, modules: Sequence[str], *, seed: int, dtype: Dtype = "F32"
) -> None:
    """A PEFT directory with random values, large enough to change what the model says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator, shapes = np.random.default_rng([rank, seed]), pack.shape.linear_modules()
    pairs = {}
    for module in modules:
        rows, columns = shapes[module]
        lora_A = generator.standard_normal((rank, columns), np.float32) / np.float32(columns**0.5)
        pairs[module] = LoraPair(lora_A, generator.standard_normal((rows, rank), np.float32) * np.float32(0.03))
    config = LoraConfig(rank=rank, alpha=2.0 * rank, target_modules=tuple({name.rsplit(".", 1)[1] for name in modules}))
    content = PeftDirectory(adapter=Adapter(config, pairs), base_fingerprint=pack.fingerprint, dtype=dtype)
    write_peft(path, content)


def make_resident(artifacts: Artifacts, count: int) -> Path:
    """A folder of `count` adapters of rank 8 on q and v, in float16: what 1,000 of on all modules would be is 10 GB."""
    pack, folder = artifacts.pack, artifacts.folder / "resident"
    modules = [name for name in pack.shape.linear_modules() if name.endswith(_RESIDENT_MODULES)]
    for number in range(count):
        write_adapter(pack, folder / str(number), _RESIDENT_RANK, modules, seed=1000 + number, dtype="F16")
    return folder


def make_peers(artifacts: Artifacts, peers: Sequence[str], python: str) -> None:
    """genai's tuned base and a model with adapter inputs for each rank; llama.cpp's Q4_0 file and all adapters."""
    folder = artifacts.folder
    if "genai" in peers and artifacts.pack.shape.head_dim % 16:
        print("genai: skipped: its attention takes heads whose size is a multiple of 16", flush=True)
    elif "genai" in peers:
        for name, rank in PEER_SETS.items():
            shutil.copytree(adapter_path(folder, name, 0), folder / f"adapter-{rank}")
        make_genai(artifacts, python)
        for name, rank in PEER_SETS.items():
            for number in range(ROWS) if f"olive-{rank}" in artifacts.made else ():
                _write_genai_adapter(adapter_path(folder, name, number), olive_path(folder, rank, number))
    if "llamacpp" in peers:
        script, output = module_command(python, "export.gguf_files"), folder / "llamacpp.gguf"
        if artifacts.make("llamacpp", [*script, "text-model", artifacts.checkpoint, output]):
            for name in PEER_SETS:
                pairs = [(adapter_path(folder, name, n), gguf_path(folder, name, n)) for n in range(ROWS)]
                paths = [path for pair in pairs for path in pair]
                artifacts.make(f"llamacpp-{name}", [*script, "adapter", artifacts.checkpoint, *paths])


def _write_genai_adapter(source: Path, output: Path) -> None:
    """The values for the adapter inputs that Olive made of the builder's constants; Olive itself writes one adapter."""
    values = {
        name.replace(".self_attn.", ".attn.").replace(".weight", ".MatMul.weight"): value
        for name, value in input_values(read_peft(source).adapter).items()
    }
    content = ort.AdapterFormat()
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    content.export_adapter(str(output))


def olive_path(folder: Path, rank: int, number: int) -> Path:
    """Where a row's adapter of the model that Olive made lies."""
    return folder / f"olive-{rank}" / f"{number}.onnx_adapter"


def gguf_path(folder: Path, name: str, number: int) -> Path:
    """Where llama.cpp's form of an adapter lies."""
    return folder / f"{name}-{number}.gguf"


def _write_tokenizer(checkpoint: Path, vocab_size: int) -> None:
    """One that gives each token a text: `w7 w8`."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{token}": token for token in range(3, vocab_size)}
    tokenizer: Config = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
