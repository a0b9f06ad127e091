"""bom.cdx.json of a release: CycloneDX 1.6, with the adapter as a machine-learning model that depends on its base."""

from __future__ import annotations

import json
import uuid
from typing import Any

from fedlora.release.layout import BOM
from fedlora.release.manifest import ReleaseManifest
from fedlora.version import __version__

_MODEL = "machine-learning-model"


def bom_text(manifest: ReleaseManifest, *, is_decoder: bool) -> str:
    """The document. The same release has the same one: its serial number is made of the adapter's digest."""
    here = f"{manifest.name}@{manifest.version}"
    base = f"base:{manifest.base.fingerprint}"
    digest = manifest.adapter.values_sha256
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"fedlora:{here}:{digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": manifest.issued,
            "tools": {"components": [{"type": "application", "name": "fedlora", "version": __version__}]},
            "component": {
                "type": _MODEL,
                "bom-ref": here,
                "name": manifest.name,
                "version": str(manifest.version),
                "modelCard": _model_card(manifest, is_decoder),
                "properties": _properties(manifest),
            },
        },
        "components": [
            {
                "type": _MODEL,
                "bom-ref": base,
                "name": manifest.base.source,
                "properties": [{"name": "fedlora:fingerprint", "value": manifest.base.fingerprint}],
            },
            *(
                {
                    "type": "file",
                    "bom-ref": f"file:{path}",
                    "name": path,
                    "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
                }
                for path, entry in sorted(manifest.files.items())
                if path != BOM
            ),
        ],
        "dependencies": [{"ref": here, "dependsOn": [base]}],
    }
    return json.dumps(document, indent=2) + "\n"


def _model_card(manifest: ReleaseManifest, is_decoder: bool) -> dict[str, Any]:
    return {
        "modelParameters": {
            "task": "text-generation" if is_decoder else "feature-extraction",
            "architectureFamily": "transformer",
            "modelArchitecture": f"LoRA, rank {manifest.adapter.rank}",
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": f"held-out loss, {name}", "value": f"{score:.6f}"}
                for name, score in manifest.evaluation.items()
            ]
        },
    }


def _properties(manifest: ReleaseManifest) -> list[dict[str, str]]:
    run = manifest.run
    values = {
        "digest": manifest.adapter.values_sha256, "run": run.run, "round": run.round, "method": run.method,
        "devices": run.devices, "examples": run.examples,
    }  # fmt: skip
    return [{"name": f"fedlora:{name}", "value": str(value)} for name, value in values.items()]
