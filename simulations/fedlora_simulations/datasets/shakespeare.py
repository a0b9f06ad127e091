"""The data set `shakespeare`: one speaking role of Shakespeare's plays on each device, the largest roles first."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from fedlora.config.run import DataConfig, Scalar
from fedlora.data.datasets import DeviceData, partition_of
from fedlora.errors import DataError
from fedlora.files.json_text import parse_json
from fedlora_client.records.byte_source import opened


def shakespeare(config: DataConfig, node: Mapping[str, Scalar]) -> DeviceData:
    """`data.path` is a roles.jsonl.gz with a line per role: client, train and test (lists of speeches)."""
    roles = _roles(Path(config.path))
    return roles[partition_of(node, len(roles), config.path)]


@lru_cache(maxsize=1)
def _roles(path: Path) -> list[DeviceData]:
    roles = []
    if not path.exists():
        raise DataError(f"{path}: cannot be read: there is no such file; set data.path to a roles.jsonl.gz")
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    role = parse_json(line)
                    if not isinstance(role["train"], list) or not isinstance(role["test"], list):
                        raise TypeError("train and test must be lists of speeches")
                    train, held_out = "\n\n".join(role["train"]), "\n\n".join(role["test"])
                    if not isinstance(role["client"], str):
                        raise TypeError("client must be a name")
                    roles.append(DeviceData(name=role["client"], train=(train,), held_out=(held_out,)))
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(
                        f"{path}: line {number}: not a role with client, train and test: {error!r}; copy the file again"
                    ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; set data.path to a roles.jsonl.gz") from None
    measured = [role for role in roles if role.held_out[0]]
    return sorted(measured, key=lambda role: (-role.train_bytes, role.name))
