"""The model that a request names: the base, or the newest versions of adapters, held until the request has ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.adapters.signed import ReleaseInfo
from fedlora_serve.adapters.together import releases_of
from fedlora_serve.http.access.keys import Caller
from fedlora_serve.http.protocol.adapter_shares import AdapterShare
from fedlora_serve.http.protocol.envelope import EnvelopeFields
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.field_types import ADAPTERS_HEADER, DIGEST_HEADER, RELEASE_HEADER, SIGNER_HEADER
from fedlora_serve.http.service.leasing import leased, leased_together, unknown_model
from fedlora_serve.http.service.metrics import JOINT
from fedlora_serve.http.service.state import ServiceState


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Who answers."""

    name: str
    base_fingerprint: str
    held: Lease | None = None  # None: the base

    @property
    def version(self) -> LoadedAdapter | None:
        return self.held.version if self.held else None

    @property
    def label(self) -> str:
        """What metrics call it: by the names of the adapters, where several answer together."""
        if self.version is None or not self.version.made_of:
            return self.name
        return JOINT.join(sorted(part.adapter.name for part in self.version.made_of))

    @property
    def virtual_tokens(self) -> int:
        """Those of its adapter, which take room in the context and are no part of what a request is told to have."""
        return self.version.virtual_tokens if self.version else 0

    @property
    def system_fingerprint(self) -> str:
        """It changes whenever the same request may give another answer."""
        adapter = f"-{self.version.digest[:12]}" if self.version else ""
        return f"fp-{self.base_fingerprint[:12]}{adapter}"

    @property
    def headers(self) -> dict[str, str]:
        version = self.version
        if version is None:
            return {DIGEST_HEADER: "none"}
        parts = [f"{part.adapter.name}={part.weight!r} {part.adapter.digest}" for part in version.made_of]
        several = {ADAPTERS_HEADER: ", ".join(parts)} if parts else {}
        return {DIGEST_HEADER: version.digest, **several, **release_headers(releases_of(version))}

    def lease(self) -> Lease | None:
        """A part of the lease, for one answer."""
        return self.held.share() if self.held else None


def release_headers(releases: Sequence[ReleaseInfo]) -> dict[str, str]:
    """What a response says of the signed releases behind it; nothing where there is none."""
    if not releases:
        return {}
    return {
        RELEASE_HEADER: ", ".join(f"{release.name} {release.version}" for release in releases),
        SIGNER_HEADER: ", ".join(release.signer for release in releases),
    }


@asynccontextmanager
async def served_model(
    state: ServiceState, caller: Caller, name: str, shares: Sequence[AdapterShare] = ()
) -> AsyncIterator[ServedModel]:
    """The model called `name`, held for as long as the context and each lease that was taken of it; with `shares` the base
    of that name, and these adapters together.

    Raises ApiError 404 where one is not there for this caller, and 400 for shares that cannot be had; what the store raises
    where an adapter cannot be read again.
    """
    fingerprint = state.base.fingerprint
    if not caller.may_use(name):
        raise await unknown_model(state, caller, name)
    if shares and name != state.base_name:
        message = f"adapters: only where model names the base, got {name!r:.140}; name it among the adapters instead"
        raise ApiError(400, message, param="adapters")
    if not shares and name == state.base_name:
        yield ServedModel(name=name, base_fingerprint=fingerprint)
        return
    held = await (leased_together(state, caller, shares) if shares else leased(state, caller, name))
    try:
        yield ServedModel(name=name, base_fingerprint=fingerprint, held=held)
    finally:
        held.release()


def new_envelope(model: ServedModel, prefix: str) -> EnvelopeFields:
    """What the response of `model` begins with, with an id of its own."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.system_fingerprint,
    }
