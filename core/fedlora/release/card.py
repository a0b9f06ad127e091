"""README.md of a release: a model card as the Hugging Face hub reads it, YAML between two lines of dashes and Markdown."""

from __future__ import annotations

import json

from fedlora.counted import counted
from fedlora.release.manifest import ReleaseManifest

_TASKS = {True: "text-generation", False: "feature-extraction"}


def card_text(manifest: ReleaseManifest, *, is_decoder: bool) -> str:
    """The card. JSON is YAML: so every text in the front matter is quoted, whatever it holds."""
    front = {
        "base_model": manifest.base.source,
        "library_name": "peft",
        "pipeline_tag": _TASKS[is_decoder],
        "tags": ["lora", "federated-learning", "fedlora"],
    }
    head = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    return f"---\n{head}\n---\n\n{_body(manifest)}"


def _body(manifest: ReleaseManifest) -> str:
    adapter, run = manifest.adapter, manifest.run
    rows = {
        "version": manifest.version,
        "issued, expires": f"{manifest.issued}, {manifest.expires}",
        "base": f"{manifest.base.source} (fingerprint `{manifest.base.fingerprint}`)",
        "adapter": f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, on {counted(adapter.modules, 'module')}: "
        + ", ".join(f"`{name}`" for name in adapter.target_modules),
        "digest of its values": f"`{adapter.values_sha256}`",
        "made by": f"round {run.round} of a federated run with method `{run.method}`",
        "devices, examples": f"{run.devices}, {run.examples or 'not told'}",
        "differential privacy": "none"
        if manifest.privacy is None
        else f"epsilon {manifest.privacy.epsilon:g} at delta {manifest.privacy.delta:g}",
    }
    rows |= {f"held-out loss, {name.replace('_', ' ')}": f"{score:.4f}" for name, score in manifest.evaluation.items()}
    table = "\n".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items())
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        "An adapter that devices trained together on data that stayed with them.\n\n"
        f"| what | value |\n|---|---|\n{table}\n\n"
        "`release.json` holds the digest of every file here, signed by Ed25519 and ML-DSA-65; `fedlora update` and\n"
        "`fedlora serve --require-signed` take nothing else. The folder `adapter` is PEFT's own format.\n"
    )
