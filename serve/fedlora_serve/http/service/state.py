"""What the routes of one service share: the base, its engine, its adapters, and who may do how much."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from tokenizers import Tokenizer

from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.request import TextEngine
from fedlora_serve.classification import Classifier
from fedlora_serve.embedding import Embedder
from fedlora_serve.http.access.keys import Caller, Keys
from fedlora_serve.http.service.adapter_folder import AdapterFolder
from fedlora_serve.http.service.adapter_templates import AdapterTemplates
from fedlora_serve.http.service.fair_threads import FairThreads
from fedlora_serve.http.service.metrics import Metrics
from fedlora_serve.http.service.releases_watch import ReleasesWatch
from fedlora_serve.http.service.token_strings import TokenStrings
from fedlora_serve.limits import Limits
from fedlora_serve.text.model_defaults import ModelDefaults
from fedlora_serve.text_encoder import TextEncoder


def _one_thread() -> FairThreads:
    return FairThreads(1, "fedlora-one")


def _few_threads() -> FairThreads:
    return FairThreads(2, "fedlora-few")


@dataclass(slots=True, kw_only=True, eq=False)
class ServiceState:
    """One base, served. A decoder has an engine; an encoder a classifier where it has a head, else an embedder."""

    base: BasePack
    base_name: str  # what a request calls the base in `model`
    tokenizer: Tokenizer
    store: AdapterStore
    limits: Limits
    keys: Keys
    metrics: Metrics
    engine: TextEngine | None = None
    embedder: Embedder | None = None
    classifier: Classifier | None = None
    model_defaults: ModelDefaults = field(default_factory=ModelDefaults)  # how tokens are chosen where nobody says it
    template: ChatTemplate | None = None  # None: the base has none, and does not chat
    adapter_templates: AdapterTemplates = field(
        default_factory=AdapterTemplates
    )  # of adapters that chat in their own way
    adapter_folder: AdapterFolder | None = None  # what may be loaded over HTTP; None: nothing
    releases: ReleasesWatch | None = None  # what `fedlora update` puts into use; None: nothing
    changing_adapters: asyncio.Lock = field(default_factory=asyncio.Lock)  # over HTTP, one at a time
    token_strings: TokenStrings = field(init=False)
    started_at: float = field(default_factory=time.time)  # unix seconds
    # For what takes one thread at a time, off the event loop: the template and the embedder.
    one_thread: FairThreads = field(default_factory=_one_thread)
    # For tokenizing, off the event loop: a text of some MB takes a hundred times as much memory meanwhile.
    few_threads: FairThreads = field(default_factory=_few_threads)

    @property
    def encoder(self) -> TextEncoder | None:
        """Whichever there is."""
        return self.embedder or self.classifier

    def __post_init__(self) -> None:
        self.token_strings = TokenStrings(self.tokenizer)


def without_folders(message: str, *folders: Path) -> str:
    """A message that names files, and not that they lie in these folders: where they do is nobody's business."""
    for folder in folders:
        message = message.replace(f"{folder}/", "")
    return message


def service_of(request: Request) -> ServiceState:
    """The service that a request came to; `create_app` put it there."""
    state: ServiceState = request.app.state.service
    return state


def caller_of(request: Request) -> Caller:
    """Who sent the request; a `GuardedRoute` found out before its body was read."""
    caller: Caller = request.state.caller
    return caller
