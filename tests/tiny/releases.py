"""Runs of a tiny base with committed rounds, releases of them, and the keys that sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.base.heads import initial_extras
from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig, Scalar
from fedlora.exported.inputs import digest_of, input_values
from fedlora.identity.keys import SigningKey
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.release.folder import listed_files
from fedlora.release.layout import ENVELOPE
from fedlora.release.manifest import ReleaseManifest
from fedlora.release.manifest_parts import FileEntry, MadeBy, ReleasedAdapter, ReleasedBase, ReleasedRun
from fedlora.release.sealed import seal_release
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import open_run

from tests.tiny.adapters import random_adapter

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def committed_run(
    folder: Path, base: BasePack, rounds: int = 2, settings: Mapping[str, Scalar] | None = None, head: Sequence[str] = (),
) -> Path:  # fmt: skip
    """A run named `tone` with so many rounds, each with another adapter, and other parts of the `head`."""
    config = RunConfig.from_flat({"name": "tone", "base": str(base.directory), **(settings or {})}, "test")
    with open_run(folder, config, base, "0123456789abcdef") as run:
        for number in range(1, rounds + 1):
            record = RoundRecord(
                number, devices=3, replies=2, examples={"kitchen": 5, "cellar": 7}, loss={"kitchen": 2.5}
            )
            extras = {name: value + np.float32(number) for name, value in initial_extras(head, base).items()}
            run.commit(with_extras(random_adapter(base, seed=number), extras), {}, record)
            run.add_metrics(record)
    return folder


def a_manifest(**changed: Any) -> ReleaseManifest:
    """One that is sound, of an adapter that is not there."""
    manifest = ReleaseManifest(
        name="tone",
        version=3,
        issued="2026-12-01T12:00:00Z",
        expires="2027-12-01T12:00:00Z",
        base=ReleasedBase(fingerprint="a" * 64, source="tiny", tokenizer_sha256="b" * 64),
        adapter=ReleasedAdapter(
            values_sha256="c" * 64, rank=4, alpha=8.0, use_rslora=False, target_modules=("q_proj", "v_proj"), modules=4
        ),
        run=ReleasedRun(run="0123", round=2, method="fedavg", devices=2, examples=12),
        files={"adapter/adapter_model.safetensors": FileEntry(sha256="d" * 64, size_bytes=10)},
        made_by=MadeBy(command="fedlora release", versions={"fedlora": "0.1.0"}),
    )
    return replace(manifest, **changed)


def write_release(
    folder: Path, base: BasePack, key: SigningKey, *, seed: int = 1, lora: LoraConfig | None = None,
    adapter: Adapter | None = None, **changed: Any,
) -> ReleaseManifest:  # fmt: skip
    """A release of an adapter of the base in `folder`, without card and bill of materials; `changed` are its fields."""
    adapter = adapter or random_adapter(base, lora, seed)
    folder.mkdir(parents=True)
    write_peft(folder / "adapter", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    manifest = a_manifest(
        base=ReleasedBase(fingerprint=base.fingerprint, source="tiny", tokenizer_sha256="b" * 64),
        adapter=replace(a_manifest().adapter, values_sha256=digest_of(input_values(adapter))),
        files=listed_files(folder),
    )
    manifest = replace(manifest, **changed)
    (folder / ENVELOPE).write_bytes(seal_release(manifest, key))
    return manifest
