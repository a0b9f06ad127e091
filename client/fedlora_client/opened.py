"""What a process opens once for all the devices that it plays: models, and the windows of each device's data."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from fedlora.base.pack import BasePack, open_pack
from fedlora.config.run import DataConfig, Scalar
from fedlora.data.examples import MultipleChoice
from fedlora.family import DecoderShape

from fedlora_client.data.device_data import device_data
from fedlora_client.data.encoding import ExampleEncoder, Pairs
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import Windows
from fedlora_client.evaluation.choices import choice_requests
from fedlora_client.model import Model, open_model
from fedlora_client.ops.compute import Compute

Part = Literal["train", "held_out", "test"]  # of a device's data

_CALLED: Mapping[Part, str] = {"train": "training", "held_out": "held-out", "test": "test"}

_opening = threading.Lock()


def opened_model(base: str, compute: Compute) -> Model:
    """The model of a base, opened once: devices of a simulation begin at the same moment."""
    with _opening:
        return _open(base, compute)


@lru_cache(maxsize=1024)
def device_windows(
    config: DataConfig, node: tuple[tuple[str, Scalar], ...], base: str, compute: Compute, length: int, part: Part
) -> Windows:
    """The windows of `length` tokens that a base reads a part of the device's data in."""
    data, model = device_data(config, node), opened_model(base, compute)
    examples = {"train": data.train, "held_out": data.held_out, "test": data.test}[part]
    return model.windows(examples, length, f"device {data.name}: {_CALLED[part]} text")


@lru_cache(maxsize=1024)
def device_choices(
    config: DataConfig, node: tuple[tuple[str, Scalar], ...], base: str, compute: Compute, part: Part
) -> tuple[tuple[MultipleChoice, ...], tuple[Pairs, ...]]:
    """The questions of multiple choice in a part of the device's data, and what a decoder is asked of their choices."""
    data, model = device_data(config, node), opened_model(base, compute)
    examples = {"train": data.train, "held_out": data.held_out, "test": data.test}[part]
    questions = tuple(example for example in examples if isinstance(example, MultipleChoice))
    if not questions or not isinstance(model.shape, DecoderShape):
        return (), ()
    encoder = ExampleEncoder(tokenizer=open_tokenizer(model.base.directory), shape=model.shape)
    return questions, choice_requests(questions, encoder, f"device {data.name}: {_CALLED[part]} questions")


def forget_data() -> None:
    """Let go of what was read of data that were changed since."""
    device_data.cache_clear()
    device_windows.cache_clear()
    device_choices.cache_clear()


def forget_models() -> None:
    """Let go of bases that were replaced since."""
    _open.cache_clear()
    _pack.cache_clear()
    device_windows.cache_clear()
    device_choices.cache_clear()


@lru_cache(maxsize=4)
def _open(base: str, compute: Compute) -> Model:
    return open_model(_pack(base), compute)


@lru_cache(maxsize=4)
def _pack(base: str) -> BasePack:
    return open_pack(base)
