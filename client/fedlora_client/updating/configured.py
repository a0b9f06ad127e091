"""The settings of an update from a device's configuration, and how a repository is pinned there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text
from fedlora.identity.keys import PublicKey

from fedlora_client.service.config import DeviceConfig, read_device
from fedlora_client.updating.settings import UpdateSettings, channel_of

ROOT_FILE, KEY_FILE = "release-root.json", "release-{}.pub"


def settings_of(config: DeviceConfig, folder: Path | None = None) -> UpdateSettings:
    """What [update] says. Raises ConfigError where it says nothing, or something that cannot be."""
    section = config.update
    if not section.url:
        raise ConfigError(
            f"{config.path}: it has no [update]; pin a repository: fedlora update init URL --root ROOT --trust KEY.pub "
            "--name NAME"
        )
    try:
        return UpdateSettings(
            url=section.url,
            name=section.name,
            channel=channel_of(section.channel),
            root=Path(section.root),
            keys=tuple(map(Path, section.keys)),
            base=config.device.base,
            model=section.model or config.serve.model,
            folder=folder or config.releases,
            max_mb=section.max_mb,
            timeout_s=section.timeout_s,
            watch_s=section.watch_s,
        )
    except ConfigError as error:
        raise ConfigError(f"{config.path}: {error}") from None


def pin(path: Path, *, url: str, name: str, channel: str, root: Path, keys: Sequence[Path]) -> UpdateSettings:
    """Write [update] into a device.toml, with copies of the root and the keys beside it. Raises FedloraError, with nothing
    written, where it has one or a file is not what it should be."""
    config = read_device(path)
    if config.update.url:
        raise ConfigError(
            f"{path}: it has an [update], of {config.update.url}; change it there, or remove it to pin another"
        )
    settings = UpdateSettings(
        url=url, name=name, channel=channel_of(channel), root=root, keys=tuple(keys), base=config.device.base,
        folder=config.releases,
    )  # fmt: skip
    pinned = _root_text(settings.pinned_root(), root)
    folder, names = path.parent, []
    for key in settings.trusted():
        names.append(KEY_FILE.format(key.keyid[:16]))
        _write_key(folder / names[-1], key)
    write_text(folder / ROOT_FILE, pinned)
    written = {"url": url, "name": name, "channel": channel, "root": ROOT_FILE, "keys": names}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in written.items())  # JSON of these is TOML
    write_text(path, f"{path.read_text(encoding='utf-8').rstrip()}\n\n[update]\n{lines}")
    return settings_of(read_device(path))


def _root_text(content: bytes, path: Path) -> str:
    """The text of a root that its own keys signed. Raises ConfigError for anything else."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root
    from tuf.api.serialization import DeserializationError

    expected = "expected the root file that fedlora publish init made"
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(content)
        if not isinstance(metadata.signed, Root):
            raise ConfigError(f"{path}: metadata of another role; {expected}")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; {expected}") from None
    return content.decode("utf-8")


def _write_key(path: Path, key: PublicKey) -> None:
    if not path.exists():
        key.write(path)
