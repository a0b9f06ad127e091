"""A device's data, read once a process and cut to `data.max_bytes`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from fedlora.config.run import DataConfig, Scalar
from fedlora.counted import counted
from fedlora.data.datasets import DataSource, DeviceData, find_dataset
from fedlora.data.examples import Example, size_bytes
from fedlora.errors import ConfigError


@lru_cache(maxsize=1024)
def device_data(config: DataConfig, node: tuple[tuple[str, Scalar], ...]) -> DeviceData:
    """What the data set of `config` gives a device whose configuration is `node`, in order. Raises DataError."""
    data = find_dataset(config.name)(config, dict(node))
    if not config.max_bytes or data.never_trains:
        return data
    if not data.train:
        raise ConfigError(
            f"device {data.name}: no text to cut to data.max_bytes; give it data, or leave it out of the run"
        )
    kept = _cut(data.train, config.max_bytes)
    told = f"data.max_bytes = {config.max_bytes} keeps {len(kept)} of {counted(len(data.train), 'example')}"
    notices = (*data.notices, told) if kept != data.train else data.notices
    return replace(data, train=kept, sources=tuple(_first(data.sources, len(kept))), notices=notices)


def _first(sources: Iterable[DataSource], examples: int) -> Iterator[DataSource]:
    """The sources with so many examples to train on in all, the first ones."""
    for source in sources:
        here = min(source.train, examples)
        examples -= here
        yield replace(source, train=here)


def _cut(examples: tuple[Example, ...], limit_bytes: int) -> tuple[Example, ...]:
    """The first `limit_bytes` of the examples: text without half a character at its end, records whole, at least one."""
    kept: list[Example] = []
    for example in examples:
        size = size_bytes(example)
        if size <= limit_bytes:
            kept.append(example)
        elif isinstance(example, str):
            part = example.encode()[:limit_bytes].decode(errors="ignore")
            kept += [part] if part else []
        elif not kept:
            kept.append(example)
        limit_bytes -= size
        if limit_bytes <= 0:
            break
    return tuple(kept)
