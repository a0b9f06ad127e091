"""The chat templates of adapters: the one that the operator named for it, or its own. The others speak as the base does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

from fedlora.data.chat_settings import TEMPLATE, ChatSettings, read_chat_settings
from fedlora.data.chat_template import ChatTemplate, template_of
from fedlora.errors import ConfigError, PackError

from fedlora_serve.adapters.loading import LoadedAdapter

_KEPT = 64  # compiled templates: adapters of one training mostly share theirs


class AdapterTemplates:
    """Compiled as they are asked for. One thread at a time."""

    def __init__(
        self,
        base_tokens: Mapping[str, str] | None = None,  # the base's special tokens, where an adapter names none
        *,
        given: Mapping[str, ChatSettings] | None = None,  # {adapter's name: what the operator named for it}
        now: Callable[[], date] = datetime.now,
    ) -> None:
        self._base_tokens, self._given, self._now = dict(base_tokens or {}), dict(given or {}), now
        self._compiled: OrderedDict[tuple[object, ...], ChatTemplate] = OrderedDict()

    def of(self, version: LoadedAdapter | None) -> ChatTemplate | None:
        """The template of chats with an adapter; None where they are written as the base's are."""
        if version is None:
            return None
        settings = self._settings(version)
        if settings.source is None:
            return None
        tokens = {**self._base_tokens, **version.chat.special_tokens}
        key = (settings.source, settings.tool_source, settings.place, *sorted(tokens.items()))
        if key not in self._compiled:
            compiled = template_of(replace(settings, special_tokens=tokens), now=self._now)
            if compiled is None:
                raise AssertionError(f"{version.name}: its template has a source")
            self._compiled[key] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _settings(self, version: LoadedAdapter) -> ChatSettings:
        """What its chats are written by; where several answer together and differ, as the base's are."""
        first, *others = (self._given.get(part.adapter.name, part.adapter.chat) for part in version.parts)
        alike = all(replace(other, place="") == replace(first, place="") for other in others)
        return first if alike else ChatSettings()


def template_file(path: Path) -> ChatSettings:
    """A chat template that the operator named. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"chat template {path}: no such file; name a file with a Jinja template, such as {TEMPLATE}")
    folder, remedy = path.parent, "name a file with a Jinja template"
    settings = read_chat_settings(folder, {TEMPLATE}, error=ConfigError, remedy=remedy, template=path.name)
    try:
        template_of(settings)
    except PackError as error:
        raise ConfigError(str(error).replace("mend it and pack the model again", "mend it")) from None
    return settings
