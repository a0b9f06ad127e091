"""Services whose engine computes, with a key for the web and one for the operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.data.chat_template import ChatTemplate
from fedlora_serve.http.access.keys import ApiKey, key_digest
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.open_service import open_service
from fedlora_serve.http.service.state import ServiceState

from tests.serve.http.services import TEMPLATE

WEB_KEY, SLOW_KEY, ADMIN_KEY = "web-key-0123456789", "slow-key-0123456789", "admin-key-0123456789"


@contextmanager
def opened(model: Path, *, keeps_template: bool = False, **fields: Any) -> Iterator[ServiceState]:
    """The service of a folder, named `base`, with a chat template or its own; SLOW_KEY is good for one request a minute."""
    keys = (
        ApiKey(name="web", digest=key_digest(WEB_KEY)),
        ApiKey(name="slow", digest=key_digest(SLOW_KEY), requests_per_minute=1),
    )
    config = ServeConfig(
        served_model_name="base", threads=1, cache_memory="8MiB", keys=keys, admin=key_digest(ADMIN_KEY), **fields
    )
    state = open_service(model, config)
    if state.engine is not None and not keeps_template:
        state.template = ChatTemplate(TEMPLATE, "the template", {})
    try:
        yield state
    finally:
        if state.engine is not None:
            state.engine.close(0)
        if state.adapter_folder is not None:
            state.adapter_folder.close()
