"""A release of random values with a model's shape: what `fedlora release` makes, without a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.exported.inputs import digest_of, input_values
from fedlora.family import DecoderShape
from fedlora.identity.keys import SigningKey
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.release.canary import Canary, CanaryText
from fedlora.release.folder import listed_files
from fedlora.release.layout import ADAPTER, ENVELOPE
from fedlora.release.manifest import ReleaseManifest, written
from fedlora.release.manifest_parts import MadeBy, ReleasedAdapter, ReleasedBase, ReleasedRun
from fedlora.release.sealed import seal_release

NAME = "bench"
_CANARY = Canary(texts=(CanaryText(text="The kitchen is warm.", max_loss=1000.0),))


def random_adapter(shape: DecoderShape, rank: int, seed: int) -> Adapter:
    """On all linear modules; its values are small enough for any text."""
    generator = np.random.default_rng(seed)
    modules = shape.linear_modules()
    first = initial_adapter(LoraConfig(rank=rank, alpha=2.0 * rank), modules, generator)
    pairs = {
        name: LoraPair(pair.lora_A, generator.normal(0, 1e-3, pair.lora_B.shape).astype(np.float32))
        for name, pair in first.pairs.items()
    }
    return Adapter(first.config, pairs)


def write_release(folder: Path, adapter: Adapter, base_fingerprint: str, key: SigningKey, version: int = 1) -> None:
    """The release in `folder`, which must not be there, with a canary of one text."""
    folder.mkdir(parents=True)
    write_peft(folder / ADAPTER, PeftDirectory(adapter=adapter, base_fingerprint=base_fingerprint))
    now, config = datetime.now(UTC), adapter.config
    manifest = ReleaseManifest(
        name=NAME,
        version=version,
        issued=written(now),
        expires=written(now + timedelta(days=30)),
        base=ReleasedBase(fingerprint=base_fingerprint, source="benchmark", tokenizer_sha256="0" * 64),
        adapter=ReleasedAdapter(
            values_sha256=digest_of(input_values(adapter)), rank=config.rank, alpha=config.alpha, use_rslora=False,
            target_modules=config.target_modules, modules=len(adapter.pairs),
        ),
        run=ReleasedRun(run="benchmark", round=version, method="fedavg", devices=1, examples=0),
        files=listed_files(folder),
        canary=_CANARY,
        made_by=MadeBy(command="bench_trust.py", versions={}),
    )  # fmt: skip
    (folder / ENVELOPE).write_bytes(seal_release(replace(manifest), key))


def random_release(folder: Path, base: BasePack, rank: int, key: SigningKey, version: int = 1) -> None:
    """A release for a base that is there."""
    write_release(folder, random_adapter(base.shape, rank, version), base.fingerprint, key, version)
