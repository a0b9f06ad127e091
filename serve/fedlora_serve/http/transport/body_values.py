"""How many values a body of JSON may have: two of its bytes are a list of 56, and all others wait while it is read."""

from __future__ import annotations

import re

from fastapi import HTTPException, Request

MAX_CONTAINERS, MAX_NAMES = 1 << 16, 1 << 17
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)


class BoundedRequest(Request):
    """A request whose body is read only where it has no more values than that; else HTTPException 400 is raised."""

    async def body(self) -> bytes:
        """The body. Raises HTTPException."""
        content = await super().body()
        check_values(content)
        return content


def check_values(content: bytes) -> None:
    """Raises HTTPException for JSON of too many lists, objects or names; what stands in a string is none."""
    if _are_few(content) or _are_few(_STRING.sub(b"", content)):
        return
    raise HTTPException(
        400,
        f"the body has more than {MAX_CONTAINERS} lists and objects, or {MAX_NAMES} names in them; send it in parts",
    )


def _are_few(content: bytes) -> bool:
    return content.count(b"[") + content.count(b"{") <= MAX_CONTAINERS and content.count(b":") <= MAX_NAMES
