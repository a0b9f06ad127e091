"""Readers of what comes with a release, and of what a device keeps of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedlora.identity.keys import SigningKey
from fedlora.release.canary import Canary, CanaryText, read_canary
from fedlora.release.installed import INSTALLED, Installed, InstalledVersion, read_installed, write_installed
from fedlora.release.manifest import manifest_from_json
from fedlora.release.manifest_parts import Parent, Privacy
from fedlora.release.sealed import open_release, seal_release
from fedlora.release.serving import TOLD, Served, read_served, tell_served

from tests.fuzz.reader import Reader, written
from tests.tiny.releases import a_manifest


def releases(folder: Path) -> Reader:
    """An envelope, a manifest as it is signed, a canary, and what is in use; each is read by itself."""
    key = SigningKey.generate()
    texts = (CanaryText(text="The kitchen", max_loss=3.0), CanaryText(text="é", label="warm"))
    manifest = a_manifest(
        canary=Canary(texts=texts), evaluation={"mean": 2.5}, privacy=Privacy(epsilon=1.0, delta=1e-6),
        parent=Parent(version=2, manifest_sha256="e" * 64),
    )  # fmt: skip
    made = folder / "made"
    made.mkdir()
    version = InstalledVersion(version=3, digest="a" * 64, signer="b" * 64, folder="3-aaaa")
    write_installed(made, Installed(newest=3, current=version, previous=version, refused={"c" * 64: "why"}))
    tell_served(made, Served(server="1", folder="3-aaaa"))
    files: dict[str, str | bytes] = {
        "release.json": seal_release(manifest, key),
        "manifest.json": manifest.to_json(),
        "canary.json": '{"texts": [{"text": "The kitchen", "max_loss": 3.5}, {"text": "x", "label": "y"}]}',
        INSTALLED: (made / INSTALLED).read_bytes(),
        TOLD: (made / TOLD).read_bytes(),
    }
    shutil.rmtree(made)

    def read(place: Path, name: str) -> None:
        if name == "release.json":
            open_release((place / name).read_bytes(), [key.public], "here")
        elif name == "manifest.json":
            manifest_from_json((place / name).read_bytes(), "here")
        elif name == "canary.json":
            read_canary(place / name)
        elif name == INSTALLED:
            read_installed(place)
        else:
            read_served(place)

    return Reader(written(folder / "releases", files), tuple(files), read)
