"""A committed round becomes a release: files, manifest, signature. It appears whole or not at all."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.base.pack import BasePack, file_digest, open_pack, read_manifest
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.exported.inputs import digest_of, input_values
from fedlora.exported.profiles import Profile
from fedlora.family import DecoderShape
from fedlora.files.at_rest import copy_plain, written_plain
from fedlora.files.atomic import check_directory, whole_directory
from fedlora.files.documents import read_object
from fedlora.identity.audit import audited
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.records import HEAD, ROUNDS
from fedlora.identity.records import RECORD as ENTRY
from fedlora.lora.adapter import Adapter
from fedlora.peft.for_base import adapter_of
from fedlora.peft.layout import COMPANIONS, CONFIG, WEIGHTS
from fedlora.release.bom import bom_text
from fedlora.release.canary import Canary
from fedlora.release.card import card_text
from fedlora.release.folder import listed_files, read_release
from fedlora.release.layout import ADAPTER, BOM, BUNDLE, CARD, ENVELOPE, check_name, onnx_adapter
from fedlora.release.manifest import ReleaseManifest, written
from fedlora.release.manifest_parts import MadeBy, Parent, ReleasedAdapter, ReleasedBase, ReleasedRun
from fedlora.release.model_signing import bundle_text
from fedlora.release.sealed import seal_release
from fedlora_export.adapter_export import export_peft
from fedlora_server.run.round_directory import check_committed
from fedlora_server.run.run_directory import RUN, adapter_of_round, read_config, read_metrics

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_TOKENIZER = "tokenizer.json"
_TOLD = ("fedlora", "numpy", "safetensors", "onnxruntime", "cryptography")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOrder:
    """What is to be released, and as what."""

    run: Path
    round: int
    name: str = ""  # empty: the run's
    version: int = 0  # 0: the one after the parent's, or 1
    profiles: tuple[Profile, ...] = ()
    base: str = ""  # a base pack; empty: the run's own
    canary: Canary | None = None
    parent: Path | None = None  # the release before, signed by the same key
    server_key: PublicKey | None = None  # that the run's rounds must be signed under; None: whoever signed them
    expires_days: int = 365
    command: str = "fedlora release"


def make_release(
    order: ReleaseOrder,
    output: Path,
    key: SigningKey,
    *,
    model_key: EllipticCurvePrivateKey | None = None,
    now: datetime | None = None,
) -> ReleaseManifest:
    """Write the release of a committed round as the folder `output`, which must not be there.

    Raises FedloraError where the round is not as it was committed, or the adapter does not fit the base.
    """
    check_directory(output)
    config, about = read_config(order.run), read_object(order.run / RUN, ConfigError, "a run's number and base")
    source = adapter_of_round(order.run, order.round)
    run = str(about.get("run"))
    check_committed(source.parent, run)
    _check_chain(order)
    base = open_pack(order.base or config.base)
    adapter, fingerprint = adapter_of(source, base)
    if fingerprint != about.get("base_fingerprint"):
        raise AdapterMismatchError(
            f"{base.directory}: its fingerprint is {fingerprint:.16}, the run's base is "
            f"{about.get('base_fingerprint')!s:.16}; give --base the pack that the run trained"
        )
    parent = _parent(order, key)
    is_decoder = isinstance(base.model, DecoderShape)
    moment = now or datetime.now(UTC)
    with whole_directory(output) as aside:
        (aside / ADAPTER).mkdir()
        for name in (CONFIG, WEIGHTS, *COMPANIONS):
            if (source / name).is_file():
                copy_plain(source / name, aside / ADAPTER / name)
        for profile in order.profiles:
            with written_plain():  # for whoever takes the release
                export_peft(aside / ADAPTER, aside / onnx_adapter(profile), base, profile=profile)
        manifest = ReleaseManifest(
            name=check_name(order.name or config.name),
            version=order.version or (parent.version + 1 if parent else 1),
            issued=written(moment),
            expires=written(moment + timedelta(days=order.expires_days)),
            base=_base(base),
            adapter=_adapter(adapter),
            run=_run(order, run, config.server.method),
            files=listed_files(aside),
            evaluation=_line(order).get("loss_over_devices", {}),
            canary=order.canary,
            parent=parent,
            made_by=MadeBy(command=order.command, versions=_versions()),
        )
        (aside / CARD).write_text(card_text(manifest, is_decoder=is_decoder), encoding="utf-8")
        (aside / BOM).write_text(bom_text(replace(manifest, files=listed_files(aside)), is_decoder=is_decoder))
        manifest = replace(manifest, files=listed_files(aside))
        (aside / ENVELOPE).write_bytes(seal_release(manifest, key))
        if model_key is not None:
            _write_bundle(aside, output.name, manifest, model_key)
    return manifest


def _write_bundle(folder: Path, name: str, manifest: ReleaseManifest, key: EllipticCurvePrivateKey) -> None:
    digests = {path: entry.sha256 for path, entry in manifest.files.items()}
    digests[ENVELOPE] = file_digest(folder / ENVELOPE)
    (folder / BUNDLE).write_text(bundle_text(name, digests, key), encoding="utf-8")


def _check_chain(order: ReleaseOrder) -> None:
    """Raise IdentityError unless the run's rounds are one chain of records, and all files what these say.

    A run of a fedlora that kept none has none to check, unless a key must have signed it.
    """
    rounds = order.run / ROUNDS
    has_records = (order.run / HEAD).exists() or any(rounds.glob(f"*/{ENTRY}"))
    if has_records or order.server_key is not None:
        for _ in audited(order.run, order.server_key):
            pass


def _parent(order: ReleaseOrder, key: SigningKey) -> Parent | None:
    if order.parent is None:
        return None
    release = read_release(order.parent, [key.public])
    return Parent(version=release.manifest.version, manifest_sha256=release.digest)


def _base(base: BasePack) -> ReleasedBase:
    files = read_manifest(base.directory)["files"]
    return ReleasedBase(fingerprint=base.fingerprint, source=base.source, tokenizer_sha256=files[_TOKENIZER])


def _adapter(adapter: Adapter) -> ReleasedAdapter:
    config = adapter.config
    return ReleasedAdapter(
        values_sha256=digest_of(input_values(adapter)),
        rank=max(pair.rank for pair in adapter.pairs.values()),
        alpha=config.alpha,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
        modules=len(adapter.pairs),
    )


def _run(order: ReleaseOrder, run: str, method: str) -> ReleasedRun:
    line = _line(order)
    return ReleasedRun(
        run=run,
        round=order.round,
        method=method,
        devices=line.get("replies", 0),
        examples=sum(line.get("examples", {}).values()),
    )


def _line(order: ReleaseOrder) -> dict[str, Any]:
    """The round's line of metrics.jsonl: what was measured after the commit stands there alone."""
    return next((line for line in read_metrics(order.run) if line["round"] == order.round), {})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
