"""The adapters that a request names, leased for it: one, or several that answer together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from fedlora.errors import AdapterError, AdapterStoreFullError, AdapterTooLargeError, ConfigError, UnknownAdapterError
from fedlora.nearest import hint

from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.loading import WeightedAdapter
from fedlora_serve.adapters.together import together
from fedlora_serve.http.access.keys import Caller
from fedlora_serve.http.protocol.adapter_shares import AdapterShare
from fedlora_serve.http.protocol.errors import SERVER, ApiError
from fedlora_serve.http.service.state import ServiceState

_logger = logging.getLogger(__name__)


async def leased(state: ServiceState, caller: Caller, name: str, param: str = "model") -> Lease:
    """The newest version of an adapter. Raises ApiError 404 where it is not there for this caller, by the field `param`;
    what the store raises where it cannot be read again."""
    if not caller.may_use(name):
        raise await unknown_model(state, caller, name, param)
    try:
        return await _in_a_thread(partial(state.store.lease, name))
    except UnknownAdapterError:
        raise await unknown_model(state, caller, name, param) from None
    except AdapterStoreFullError as error:
        raise _without_others(error, name) from None
    except AdapterError as error:  # whoever asks has done nothing wrong, and the file's place is not their business
        _logger.warning("%s: %s", name, error)
        message = f"the adapter {name} was evicted and cannot be read again; the service's log says why"
        raise ApiError(500, message, SERVER, "adapter_unreadable") from None


async def leased_together(state: ServiceState, caller: Caller, shares: Sequence[AdapterShare]) -> Lease:
    """Several adapters as one: each is leased until the whole is released. Raises as `leased`, and ApiError 400."""
    if len(shares) > (most := state.limits.max_adapters):
        raise ApiError(
            400,
            f"adapters: expected at most {most}, which is this service's limit, got {len(shares)}",
            param="adapters",
        )
    held: list[Lease] = []

    def give_back() -> None:
        for lease in held:
            lease.release()

    try:
        for place, share in enumerate(shares):
            param = f"adapters.{place}.name"
            if share.name == state.base_name:
                message = f"{param}: {share.name} is the base, which is in every answer; name adapters alone"
                raise ApiError(400, message, param=param)
            held.append(await leased(state, caller, share.name, param))
        parts = [
            WeightedAdapter(adapter=lease.version, weight=share.factor)
            for lease, share in zip(held, shares, strict=True)
        ]
        try:
            whole = together(parts)
        except (ConfigError, AdapterError) as error:
            raise ApiError(400, str(error), param="adapters") from None
        if state.encoder is not None:  # its graph takes A and B as inputs
            try:
                held.append(await _in_a_thread(partial(state.store.lease_copy, whole)))
            except AdapterStoreFullError as error:
                raise _without_others(error, whole.name) from None
            whole = held[-1].version
    except BaseException:
        give_back()
        raise
    return Lease(whole, give_back)


def model_names(state: ServiceState, caller: Caller) -> list[str]:
    """The base and the adapters, as far as they exist for the caller."""
    names = [state.base_name, *(status.name for status in state.store.list())]
    return [name for name in names if caller.may_use(name)]


async def unknown_model(state: ServiceState, caller: Caller, name: str, param: str = "model") -> ApiError:
    """404 that tells names like it, of those that exist for the caller."""

    def near() -> str:
        otherwise = "GET /v1/models lists those that there are"
        return hint(name, model_names(state, caller), otherwise, most=3)

    told = await asyncio.to_thread(near)
    return ApiError(404, f"the model {name!r:.140} does not exist; {told}", code="model_not_found", param=param)


def _without_others(error: AdapterStoreFullError, name: str) -> AdapterStoreFullError:
    """503, until another request has ended; which adapters others use is not for this caller to see."""
    if isinstance(error, AdapterTooLargeError):
        return error
    _logger.info("%s: %s", name, error)
    return AdapterStoreFullError(f"{name}: there is no room in memory for it; try again when other requests have ended")


async def _in_a_thread(lease: Callable[[], Lease]) -> Lease:
    """What it gives, which is released again where nobody waits for it any more."""
    reading = asyncio.get_running_loop().run_in_executor(None, lease)
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        reading.add_done_callback(_release)
        raise


def _release(reading: asyncio.Future[Lease]) -> None:
    if not reading.cancelled() and reading.exception() is None:
        reading.result().release()
