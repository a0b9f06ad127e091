"""Does the loss fall as PEFT's does? stories260K learns Shakespeare for 200 steps, by PEFT and by the trainer.

The base is the packed one for all: PEFT trains on its dequantized weights in transformers' Llama, in float32; the trainer
in float32, and in what it would choose by itself. Batches and first adapter are the same.
"""

# M windows of T tokens

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fedlora.base.pack import BasePack, open_pack
from fedlora.base.packing import make_pack
from fedlora.base.quantize import Quantization, dequantize
from fedlora.lora.adapter import Adapter, initial_adapter
from numpy.typing import NDArray

from train.job import LENGTH, LORA, SEQUENCES
from train.peers import adapted, trainable

_SHARED = Path(__file__).resolve().parents[3] / "shared"
_MODEL, _TEXT = _SHARED / "models" / "stories260K", _SHARED / "data" / "tinyshakespeare" / "input.txt.gz"
_BITS = Quantization(bits=4, block_size=32)  # 32: its rows are short
_STEPS, _EVERY, _SMOOTHED = 200, 20, 10
_LR = 2e-3
_HELD_OUT = 40  # windows at the end of the text
_SEED = 4

Curves = dict[str, tuple[list[float], float]]  # {route: (loss of each step, held-out loss at the end)}


def curve() -> tuple[dict[str, object], dict[str, float]]:
    """(configuration, figures), both empty where the model or the text is not there. Prints the curves."""
    missing = [str(path) for path in (_MODEL, _TEXT) if not path.exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} not found beside the repository")
        return {}, {}
    torch.set_num_threads(1)  # the model is small
    with tempfile.TemporaryDirectory() as folder:
        make_pack(str(_MODEL), Path(folder) / "pack", _BITS)
        base = open_pack(Path(folder) / "pack")
        ids = _text_ids(base)
        adapter = initial_adapter(LORA, base.shape.linear_modules(), np.random.default_rng(_SEED))
        curves: Curves = {"peft": _peft(base, adapter, ids)}
        curves |= {name: _ours(base, adapter, ids, name) for name in ("float32", "auto")}
    _print_curves(curves)
    figures: dict[str, float] = {}
    peft = _smoothed(curves["peft"][0])
    for name, (losses, held_out) in curves.items():
        figures[f"{name}_held_out"] = held_out
        if name != "peft":
            difference = np.abs(_smoothed(losses) - peft)
            figures[f"{name}_largest_difference"] = float(difference.max())
            figures[f"{name}_mean_difference"] = float(difference.mean())
    configuration = {"steps": _STEPS, "batch": [SEQUENCES, LENGTH], "lr": _LR, "smoothed": _SMOOTHED, "seed": _SEED}
    # Significant digits: a small difference is not to look like none.
    return configuration, {key: float(f"{value:.6g}") for key, value in figures.items()}


def _text_ids(base: BasePack) -> NDArray[np.int64]:
    """[M, T + 1]: each window with the token that follows it; the last _HELD_OUT are not trained on."""
    tokenizer = import_module("fedlora_client.data.tokenizer").open_tokenizer(base.directory)
    with gzip.open(_TEXT, "rt", encoding="utf-8") as file:
        ids = np.array(tokenizer.encode(file.read(), add_special_tokens=False).ids)
    count = min(_STEPS * SEQUENCES + _HELD_OUT, (len(ids) - 1) // LENGTH)
    starts = np.arange(count)[:, None] * LENGTH
    windows: NDArray[np.int64] = ids[starts + np.arange(LENGTH + 1)]
    return windows


def _batches(count: int) -> Iterator[NDArray[np.int64]]:
    """The trainer's order of windows: one shuffled pass after another, cut into batches."""
    generator, order = np.random.default_rng(_SEED), np.empty(0, np.int64)
    for _ in range(_STEPS):
        while len(order) < SEQUENCES:
            order = np.concatenate([order, generator.permutation(count)])
        yield order[:SEQUENCES]
        order = order[SEQUENCES:]


def _peft(base: BasePack, adapter: Adapter, ids: NDArray[np.int64]) -> tuple[list[float], float]:
    transformers = import_module("transformers")
    config = transformers.LlamaConfig.from_pretrained(base.directory)
    model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.float32)
    modules = base.shape.linear_modules() | base.shape.vocabulary_modules()
    state = {f"{module}.weight": torch.from_numpy(dequantize(base.matrix(module))) for module in modules}
    state |= {f"{module}.weight": torch.tensor(base.norm(module)) for module in base.shape.norm_modules()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    model = adapted(model, adapter)
    optimizer = torch.optim.AdamW(trainable(model), lr=_LR, weight_decay=0.0)

    def loss_of(windows: NDArray[np.int64]) -> torch.Tensor:
        tokens = torch.from_numpy(windows)
        return F.cross_entropy(model(input_ids=tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())

    losses = []
    training = ids[:-_HELD_OUT]
    for rows in _batches(len(training)):
        loss = loss_of(training[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, loss_of(ids[-_HELD_OUT:]).item()


def _ours(base: BasePack, adapter: Adapter, ids: NDArray[np.int64], compute: str) -> tuple[list[float], float]:
    from fedlora.config.run import TrainConfig
    from fedlora_client.data.windows import Windows
    from fedlora_client.decoder.decoder import Decoder
    from fedlora_client.ops.compute import choose_compute
    from fedlora_client.training.measuring import evaluate
    from fedlora_client.training.trainer import train

    def windows(part: NDArray[np.int64]) -> Windows:
        tokens = torch.from_numpy(part)
        return Windows(tokens[:, :-1], tokens[:, 1:], torch.zeros_like(tokens[:, 1:]))

    settings: dict[str, Any] = {"compute": compute, "kernels": "auto", "checkpointing": "auto"}
    config = TrainConfig(steps=_STEPS, batch_size=SEQUENCES, lr=_LR, max_grad_norm=0.0, **settings)
    decoder = Decoder(base, choose_compute(compute))
    print(f"{compute}: {decoder.compute}")
    result = train(decoder, adapter, windows(ids[:-_HELD_OUT]), config, np.random.default_rng(_SEED))
    return list(result.losses), evaluate(decoder, result.adapter, windows(ids[-_HELD_OUT:]))[0]


def _smoothed(losses: list[float]) -> NDArray[np.float64]:
    """Means of the last _SMOOTHED steps."""
    return np.convolve(losses, np.ones(_SMOOTHED) / _SMOOTHED, "valid")


def _print_curves(curves: Curves) -> None:
    print("step    " + "".join(f"{name:>10}" for name in curves) + "   nats per token")
    for step in range(0, _STEPS + 1, _EVERY):
        row = max(step - 1, 0)
        print(f"{row + 1:<8}" + "".join(f"{losses[row]:10.4f}" for losses, _ in curves.values()))
    print("held out" + "".join(f"{held_out:10.4f}" for _, held_out in curves.values()))
