"""The keys of a service, as Bearer tokens (RFC 6750): who holds one is let in.

A service keeps no key, only its sha256. A key that comes is compared with every one that there is, each in constant
time, so that the time of an answer tells nothing of them.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence

from fedlora_serve.http.access.callers import Anyone, ApiKey, Caller, KeyHolder
from fedlora_serve.http.access.token_bucket import Clock
from fedlora_serve.http.protocol.errors import ApiError

__all__ = ["ApiKey", "Caller", "Keys", "key_digest"]

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Keys:
    """The keys of a service. Its state is bounded by their number."""

    def __init__(
        self, keys: Sequence[ApiKey] = (), *, admin: bytes | None = None, clock: Clock = time.monotonic
    ) -> None:
        """`admin` is the sha256 of the operator's key, which is good for everything."""
        self._holders = [(key.digest, KeyHolder(key, clock)) for key in keys]
        self._admin = admin

    @property
    def are_required(self) -> bool:
        return bool(self._holders)

    @property
    def admin_is_set(self) -> bool:
        return self._admin is not None

    def authorize(self, authorization: str | None, peer: str = "") -> Caller:
        """Who holds this `Authorization` header's key; where no keys are set, whoever is at the address `peer`.

        Raises ApiError 401.
        """
        if not self._holders:
            return Anyone(peer or "anyone")
        caller = self._caller(authorization)
        if caller is None:
            what = "this key is not known" if authorization else "a key is needed"
            raise ApiError(
                401,
                f"{what}; send one of this service's keys as 'Authorization: Bearer KEY'",
                "authentication_error",
                "invalid_api_key",
                headers=_CHALLENGE,
            )
        return caller

    def authorize_all(self, authorization: str | None) -> None:
        """Raises ApiError 401 or 403 unless the caller may use every model: what tells of all of them is for no other."""
        caller = self.authorize(authorization)
        if isinstance(caller, KeyHolder) and caller.is_limited:
            raise ApiError(
                403,
                f"the key {caller.name!r} is good for some models only; this needs a key for all, or the admin key",
                "permission_error",
            )

    def authorize_admin(self, authorization: str | None) -> None:
        """Raises ApiError 403 where no admin key is set or another key came, and 401 where the key is not known."""
        if self._admin is None:
            raise ApiError(
                403,
                "adapters are loaded, unloaded and pinned with an admin key, and this service has none; start it with "
                "FEDLORA_ADMIN_KEY in its environment, or with admin_key_file in its configuration",
                "permission_error",
            )
        caller = self._caller(authorization)
        if isinstance(caller, KeyHolder):
            raise ApiError(403, f"the key {caller.name!r} is not the admin key; send that one", "permission_error")
        if caller is None:
            what = "this is not the admin key" if authorization else "the admin key is needed"
            raise ApiError(
                401,
                f"{what}; send it as 'Authorization: Bearer KEY'",
                "authentication_error",
                "invalid_api_key",
                headers=_CHALLENGE,
            )

    def _caller(self, authorization: str | None) -> Caller | None:
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        given = key_digest(key)
        found: Caller | None = None
        for digest, holder in self._holders:  # all of them, whichever it is
            if hmac.compare_digest(given, digest):
                found = holder
        if self._admin is not None and hmac.compare_digest(given, self._admin):
            found = Anyone("admin")
        return found if key else None  # whatever digest somebody has set, nothing is no key


def key_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
