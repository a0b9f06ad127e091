"""The model that a request names: the base, or the newest version of an adapter, held until the request has ended."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fedlora.errors import AdapterError, AdapterStoreFullError, UnknownAdapterError
from fedlora.nearest import hint

from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.adapters.signed import ReleaseInfo
from fedlora_serve.http.access.keys import Caller
from fedlora_serve.http.protocol.envelope import EnvelopeFields
from fedlora_serve.http.protocol.errors import SERVER, ApiError
from fedlora_serve.http.protocol.field_types import DIGEST_HEADER, RELEASE_HEADER, SIGNER_HEADER
from fedlora_serve.http.service.state import ServiceState

_logger = logging.getLogger(__name__)


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
        return {
            DIGEST_HEADER: self.version.digest if self.version else "none",
            **release_headers(self.version.release if self.version else None),
        }

    def lease(self) -> Lease | None:
        """A part of the lease, for one answer."""
        return self.held.share() if self.held else None


def release_headers(release: ReleaseInfo | None) -> dict[str, str]:
    """What a response says of the signed release behind it; nothing where there is none."""
    if release is None:
        return {}
    return {RELEASE_HEADER: f"{release.name} {release.version}", SIGNER_HEADER: release.signer}


@asynccontextmanager
async def served_model(state: ServiceState, caller: Caller, name: str) -> AsyncIterator[ServedModel]:
    """The model called `name`, held for as long as the context and each lease that was taken of it.

    Raises ApiError 404 where it is not there for this caller; what the store raises where it cannot be read again.
    """
    fingerprint = state.base.fingerprint
    if not caller.may_use(name):
        raise await unknown_model(state, caller, name)
    if name == state.base_name:
        yield ServedModel(name=name, base_fingerprint=fingerprint)
        return
    try:
        held = await _leased(state, name)
    except UnknownAdapterError:
        raise await unknown_model(state, caller, name) from None
    except AdapterStoreFullError:
        raise  # 503: until another request has ended
    except AdapterError as error:  # whoever asks has done nothing wrong, and the file's place is not their business
        _logger.warning("%s: %s", name, error)
        message = f"the adapter {name} was evicted and cannot be read again; the service's log says why"
        raise ApiError(500, message, SERVER, "adapter_unreadable") from None
    try:
        yield ServedModel(name=name, base_fingerprint=fingerprint, held=held)
    finally:
        held.release()


def model_names(state: ServiceState, caller: Caller) -> list[str]:
    """The base and the adapters, as far as they exist for the caller."""
    names = [state.base_name, *(status.name for status in state.store.list())]
    return [name for name in names if caller.may_use(name)]


async def _leased(state: ServiceState, name: str) -> Lease:
    """A lease, which is released again where nobody waits for it any more."""
    reading = asyncio.get_running_loop().run_in_executor(None, state.store.lease, name)
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        reading.add_done_callback(_release)
        raise


def _release(reading: asyncio.Future[Lease]) -> None:
    if not reading.cancelled() and reading.exception() is None:
        reading.result().release()


async def unknown_model(state: ServiceState, caller: Caller, name: str) -> ApiError:
    """404 that tells names like it, of those that exist for the caller."""

    def near() -> str:
        otherwise = "GET /v1/models lists those that there are"
        return hint(name, model_names(state, caller), otherwise, most=3)

    told = await asyncio.to_thread(near)
    return ApiError(404, f"the model {name!r:.140} does not exist; {told}", code="model_not_found", param="model")


def new_envelope(model: ServedModel, prefix: str) -> EnvelopeFields:
    """What the response of `model` begins with, with an id of its own."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.system_fingerprint,
    }
