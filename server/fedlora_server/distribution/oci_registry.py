"""A release in a registry of the Open Container Initiative, as an artifact: `oras pull` brings its files back.

    HOST/NAME:VERSION      an image manifest 1.1 with artifactType application/vnd.fedlora.release.v1, one layer a file;
                           org.opencontainers.image.title is its path in the release

What talks to the registry is the `oras` package. Its credentials are those of `docker login` and `oras login`, or
FEDLORA_REGISTRY_USER and FEDLORA_REGISTRY_PASSWORD; none is shown, and none is written down.
Source: github.com/opencontainers/image-spec, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError, FedloraError, MissingExtraError, ReleaseError
from fedlora.files.temporary import own_folder
from fedlora.identity.keys import PublicKey
from fedlora.release.folder import read_plain_release
from fedlora.release.layout import BUNDLE, ENVELOPE
from fedlora.release.sealed import SignedRelease

from fedlora_server.distribution.bounded_answers import Answers, bound_requests

ARTIFACT = "application/vnd.fedlora.release.v1"
USER, PASSWORD = "FEDLORA_REGISTRY_USER", "FEDLORA_REGISTRY_PASSWORD"
_TITLE = "org.opencontainers.image.title"
_EMPTY = "application/vnd.oci.empty.v1+json"
_MEDIA = {".json": "application/json", ".md": "text/markdown"}
_REFERENCE = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?(/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+")
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+)(:\d+)?")


@dataclass(frozen=True, slots=True)
class Registry:
    """Where releases of one name go: HOST[:PORT]/PATH, over TLS unless it is `plain`."""

    reference: str
    plain: bool = False

    def __post_init__(self) -> None:
        if not _REFERENCE.fullmatch(self.reference):
            raise ConfigError(
                f"{self.reference!r:.120}: expected HOST[:PORT]/NAME in small letters, without a tag: the version is it"
            )
        if self.plain and not _LOOPBACK.fullmatch(self.reference.partition("/")[0]):
            raise ConfigError(
                f"--plain-http {self.reference:.120}: credentials would go in the open; expected a registry of this machine"
            )

    def publish(self, folder: Path, trusted: Iterable[PublicKey]) -> SignedRelease:
        """Push a release that one of `trusted` signed, tagged with its version; the tag is written last.

        Raises ReleaseError where the version is there with another content, or the registry refuses.
        """
        release = read_plain_release(folder, trusted)
        target = f"{self.reference}:{release.manifest.version}"
        with _told(target):
            client, container = self._client(target)
            manifest = _manifest(folder, release)
            there = _manifest_there(client, container)
            if there is not None:
                if not isinstance(there, dict):
                    raise ReleaseError(
                        f"{target}: the registry answers with {type(there).__name__}, not with a JSON object; "
                        "expected a manifest: is a registry of the Open Container Initiative there?"
                    )
                if there.get("layers") != manifest["layers"]:
                    raise ReleaseError(
                        f"{target}: another content is there; make the release again, with a higher version"
                    )
                return release
            with own_folder("oci") as own:
                empty = own / "config.json"
                empty.write_bytes(b"{}")
                _upload(client, container, empty, manifest["config"])
            for layer in manifest["layers"]:
                _upload(client, container, folder / layer["annotations"][_TITLE], layer)
            client._check_200_response(client.upload_manifest(manifest, container))
        return release

    def _client(self, target: str) -> tuple[Any, Any]:
        try:
            import requests
            from oras.provider import Registry as Client
        except ModuleNotFoundError:
            raise MissingExtraError(
                "a registry needs the package oras; install it with: pip install 'fedlora[oci]'"
            ) from None
        host, user = self.reference.partition("/")[0], os.environ.get(USER, "")
        # Which of its two ways the registry asks for: a password each time, or for a token.
        answers = Answers()
        with requests.Session() as session:
            bound_requests(session, answers)
            asked = session.get(f"{'http' if self.plain else 'https'}://{host}/v2/", timeout=30, allow_redirects=False)
        is_basic = asked.headers.get("WWW-Authenticate", "").lower().startswith("basic")
        client = Client(hostname=host, insecure=self.plain, auth_backend="basic" if is_basic else "token")
        bound_requests(client.session, answers)
        container = client.get_container(target)
        if user:
            client.auth.set_basic_auth(user, os.environ.get(PASSWORD, ""))
        else:
            client.auth.load_configs(container)
        return client, container


def _manifest(folder: Path, release: SignedRelease) -> dict[str, Any]:
    from oras.oci import NewLayer

    paths = [ENVELOPE, *sorted(release.manifest.files), *([BUNDLE] if (folder / BUNDLE).is_file() else [])]
    layers = []
    for path in paths:
        layer = NewLayer(str(folder / path), media_type=_MEDIA.get(Path(path).suffix, "application/octet-stream"))
        layers.append({**layer, "annotations": {_TITLE: path}})
    about = release.manifest
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": ARTIFACT,
        "config": {
            "mediaType": _EMPTY, "size": 2,
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        },
        "layers": layers,
        "annotations": {
            "org.opencontainers.image.created": about.issued,
            "org.opencontainers.image.version": str(about.version),
            "org.opencontainers.image.ref.name": about.name,
            "dev.fedlora.base": about.base.fingerprint,
            "dev.fedlora.signer": release.signer,
        },
    }  # fmt: skip


def _manifest_there(client: Any, container: Any) -> Any:
    """The JSON under the tag, of which nothing is known yet; None where there is none."""
    answer = client.do_request(
        f"{client.prefix}://{container.manifest_url()}", "GET",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )  # fmt: skip
    if answer.status_code == 404:
        return None
    client._check_200_response(answer)
    return answer.json()


def _upload(client: Any, container: Any, file: Path, layer: dict[str, Any]) -> None:
    client._check_200_response(client.upload_blob(str(file), container, layer))


@contextmanager
def _told(target: str) -> Iterator[None]:
    """What the client and the connection raise, in our words; none of it holds a credential."""
    try:
        yield
    except FedloraError:
        raise
    except Exception as error:  # the client looks into answers whatever they are, and its errors have no common root
        raise ReleaseError(
            f"{target}: the registry cannot be pushed to: {type(error).__name__}: {error!s:.300}; mend that, or log in "
            "with: docker login"
        ) from None
