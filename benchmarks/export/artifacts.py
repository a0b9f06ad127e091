"""What the engines of `bench_export.py` load: one checkpoint with random weights, exported by us and by each peer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import largest_block_size, make_pack
from fedlora.base.quantize import Quantization
from fedlora.family import DecoderShape
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, write_peft

from harness.checkpoints import CONFIGS, Config, make_checkpoint
from harness.process import WorkerError, measured_command, module_command

# Llama-3.2-1B, without the scaling of its rotation
SHAPES: Mapping[str, Config] = MappingProxyType(
    {
        "135m": CONFIGS["135M"],
        "1b": dict(CONFIGS["135M"]) | {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128_256, "rope_theta": 500_000.0,
        },
    }
)  # fmt: skip

# Our graphs: where each lies, and what `fedlora export` is told to write it; an adapter of rank 16 is merged.
PROFILES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "base-head4": ("pack-head4/decoder.base.onnx", ("--profile", "base")),
        "base": ("pack/decoder.base.onnx", ("--profile", "base")),
        "compat": ("pack/decoder.onnx", ("--profile", "compat")),
        "fast": ("pack/decoder.fast.onnx", ("--profile", "fast")),
        "merged": ("merged/decoder.base.onnx", ("--merge", "adapter-16", "-o", "merged")),
    }
)
# Of genai's builder: as it is, and with the options that make its graph faster on a CPU.
BUILDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"genai": (), "genai-tuned": ("prune_lm_head=true", "fuse_mlp_gate_up=true", "block_size={block_size}")}
)
RANKS, PEER_RANKS = (8, 16, 64), (8, 16)
_TOKENIZER: Config = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
    "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "unk_token": "<unk>"},
}  # fmt: skip


@dataclass(slots=True)
class Artifacts:
    """The folder with all of them, what making each took, and why some are missing."""

    folder: Path
    wanted: frozenset[str]  # by the routes; nothing else is made
    made: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def pack(self) -> BasePack:
        return open_pack(self.folder / "pack")

    def make(self, name: str, command: Sequence[object]) -> bool:
        """Run the command that makes `name`, where that is wanted; whether it did is told, not raised."""
        if name not in self.wanted:
            return False
        try:
            self.made[name] = measured_command([str(part) for part in command])
        except WorkerError as error:
            self.skipped[name] = str(error)
            print(f"{name}: skipped: {error}", flush=True)
        return name in self.made


def make_base(folder: Path, shape_name: str, wanted: Iterable[str]) -> Artifacts:
    """The checkpoint, its pack, and an adapter of each rank."""
    sources = {f"olive-{rank}": f"builder-{rank}" for rank in PEER_RANKS}
    sources |= {f"llamacpp-{rank}": "llamacpp" for rank in PEER_RANKS}
    names = frozenset(wanted)
    artifacts = Artifacts(folder, names | {sources[name] for name in names & sources.keys()})
    make_checkpoint(artifacts.checkpoint, SHAPES[shape_name])
    (artifacts.checkpoint / "tokenizer.json").write_text(json.dumps(dict(_TOKENIZER)))  # one that transformers reads
    (artifacts.checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    source = str(artifacts.checkpoint)
    for name, embedding_bits in (("pack", 8), ("pack-head4", 4)):  # peers have heads of 4 bits
        quantization = Quantization(block_size=largest_block_size(source), embedding_bits=embedding_bits)
        make_pack(source, folder / name, quantization, scale_rule="max-abs")  # what is found faster is as fast to read
    pack = artifacts.pack
    for rank in RANKS:
        content = PeftDirectory(adapter=_adapter(pack.shape, rank), base_fingerprint=pack.fingerprint)
        write_peft(folder / f"adapter-{rank}", content)
    return artifacts


def make_ours(artifacts: Artifacts) -> None:
    """The graphs of all profiles, each by a `fedlora export` of its own."""
    fedlora = Path(sys.executable).with_name("fedlora")
    for profile, (graph, options) in PROFILES.items():
        pack = artifacts.folder / ("pack-head4" if profile == "base-head4" else "pack")
        paths = [artifacts.folder / option if option in ("adapter-16", "merged") else option for option in options]
        if artifacts.make(profile, [fedlora, "export", pack, *paths]):
            path = artifacts.folder / graph
            artifacts.made[profile]["bytes"] = _size(path, path.with_name("model.safetensors"))


def make_genai(artifacts: Artifacts, python: str) -> None:
    """int4 models of genai's builder; with adapters as inputs, which the builder writes as constants and Olive turns."""
    builder = [python, "-m", "onnxruntime_genai.models.builder", "-i", artifacts.checkpoint, "-p", "int4", "-e", "cpu"]
    cache = ["-c", artifacts.folder / "genai-cache"]
    for name, options in BUILDS.items():
        output = artifacts.folder / name
        options = tuple(option.format(block_size=artifacts.pack.quantization.block_size) for option in options)
        if artifacts.make(name, [*builder, *cache, "-o", output, *(["--extra_options", *options] if options else [])]):
            artifacts.made[name]["bytes"] = _size(output / "model.onnx", output / "model.onnx.data")
    for rank in PEER_RANKS:
        built, output = artifacts.folder / f"builder-{rank}", artifacts.folder / f"olive-{rank}"
        float_adapter = f"nodes_to_exclude={','.join(_lora_nodes(artifacts.pack.shape))}"
        adapted = [f"adapter_path={artifacts.folder / f'adapter-{rank}'}", float_adapter]
        if not artifacts.make(f"builder-{rank}", [*builder, *cache, "-o", built, "--extra_options", *adapted]):
            continue
        olive = [python, "-m", "olive", "generate-adapter", "-m", built / "model.onnx", "-o", output]
        if artifacts.make(f"olive-{rank}", olive):
            shutil.copyfile(built / "genai_config.json", output / "genai_config.json")
            artifacts.made[f"olive-{rank}"]["bytes"] = _size(*output.glob("model.onnx*"))
        shutil.rmtree(built)


def make_llamacpp(artifacts: Artifacts, python: str) -> None:
    """A Q4_0 file, and one for each adapter."""
    script = module_command(python, "export.gguf_files")
    output = artifacts.folder / "llamacpp.gguf"
    if not artifacts.make("llamacpp", [*script, "model", artifacts.checkpoint, output]):
        return
    artifacts.made["llamacpp"]["bytes"] = _size(output)
    for rank in PEER_RANKS:
        name, adapter = f"llamacpp-{rank}", artifacts.folder / f"llamacpp-{rank}.gguf"
        source = artifacts.folder / f"adapter-{rank}"
        if artifacts.make(name, [*script, "adapter", artifacts.checkpoint, source, adapter]):
            artifacts.made[name]["bytes"] = _size(output, adapter)


def make_torch(artifacts: Artifacts, python: str) -> None:
    """The float32 graph of torch.onnx.export."""
    output = artifacts.folder / "torch"
    output.mkdir()
    script = module_command(python, "export.torch_graph")
    if artifacts.make("torch", [*script, artifacts.checkpoint, output / "model.onnx"]):
        artifacts.made["torch"]["bytes"] = _size(*output.glob("model.onnx*"))


def _adapter(shape: DecoderShape, rank: int) -> Adapter:
    generator, config = np.random.default_rng(2), LoraConfig(rank=rank, alpha=2.0 * rank)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.01, pair.lora_B.shape).astype(np.float32))
        for module, pair in initial_adapter(config, shape.linear_modules(), generator).pairs.items()
    }
    return Adapter(config, pairs)


def _lora_nodes(shape: DecoderShape) -> list[str]:
    """The adapter's nodes as genai's builder names them: else it would quantize them too."""
    places = [name.replace("self_attn.", "attn/").replace("mlp.", "mlp/") for name in shape.parts()]
    return [
        f"/model/layers.{layer}/{place}/lora_{factor}/MatMul"
        for layer in range(shape.num_layers)
        for place in places
        for factor in "AB"
    ]


def _size(*files: Path) -> float:
    return float(sum(file.stat().st_size for file in files))
