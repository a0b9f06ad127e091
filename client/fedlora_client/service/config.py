"""`device.toml`: what a device is, what it has, what it allows, and whom it belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fedlora.base.pack import EMBEDDED
from fedlora.config.run import FieldNames
from fedlora.errors import BundleError, ConfigError
from fedlora.files.at_rest_key import placed_source
from fedlora.files.documents import flattened, read_toml
from fedlora.fleet.names import check_device_name
from fedlora.nearest import unknown_key

from fedlora_client.policy.policy import Policy
from fedlora_client.service.update_section import UpdateSection

FILE = "device.toml"
_NAME = re.compile(r"\w[\w.-]{0,63}")
Made = TypeVar("Made")


def home() -> Path:
    """Where a device has its folder unless it is told otherwise: $FEDLORA_HOME/device, or ~/.fedlora/device."""
    return Path(os.environ.get("FEDLORA_HOME") or Path.home() / ".fedlora") / "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSection:
    """What the device is."""

    name: str = ""  # by which the server knows it; letters, digits, '-', '_' and '.'
    base: str = EMBEDDED  # a base pack
    state: str = "state"  # the folder of all that it remembers
    socket: str = "run/device.sock"  # where the courier finds it
    group: str = ""  # whose processes may open the socket too
    peers: tuple[str, ...] = ()  # users that may ask, beside its own
    max_message_mb: int = 1024  # of an adapter that comes down
    busy_s: float = 30.0  # that a question waits for another one's end
    at_rest_key: str = ""  # file:PATH, env:VARIABLE or keyring:NAME: what it keeps of adapters is encrypted

    def __post_init__(self) -> None:
        try:
            check_device_name(self.name)
        except BundleError as error:
            raise ConfigError(f"device.name must be fit for a server: {error}") from None
        if not 1 <= self.max_message_mb <= 4096:
            raise ConfigError(f"device.max_message_mb: {self.max_message_mb}; expected 1 to 4096")
        if not 0 < self.busy_s <= 3600:
            raise ConfigError(f"device.busy_s: {self.busy_s}; expected more than 0 and at most 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """What the device trains on."""

    source: str = ""  # a file, a folder of files, or an SQLite database
    query: str = ""  # one SELECT, where it is a database: its columns are the fields of records
    fields: FieldNames = field(default_factory=FieldNames)  # what the records' fields are called; else as the run says


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSection:
    """Whom the device belongs to: the SuperLink of its fleet."""

    superlink: str = ""  # HOST:PORT
    certificates: str = ""  # the fleet's own authority, PEM
    key: str = ""  # the device's private key, OpenSSH's format
    identity: str = ""  # the pair that signs the device's answers, as fedlora key writes it
    server_identity: str = ""  # the public half of the pair that signs what the server asks; else that is not looked at
    trusted_entities: str = ""  # YAML: whose apps may run here, for Flower's --trusted-entities
    insecure: bool = False  # without TLS and keys, to try things out on one machine

    def __post_init__(self) -> None:
        if self.superlink and not re.fullmatch(r".+:\d{1,5}", self.superlink):
            raise ConfigError(f"server.superlink: {self.superlink!r:.80}; expected HOST:PORT")
        if self.insecure and (self.certificates or self.key):
            raise ConfigError("server.insecure: certificates and key are for TLS only; leave out one or the other")
        if bool(self.identity) != bool(self.server_identity):
            raise ConfigError("server.identity and server.server_identity: one is missing; give both, or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSection:
    """Where the newest committed adapter goes."""

    model: str = ""  # a folder with exported graphs: `fedlora serve` is run for it
    host: str = "127.0.0.1"
    port: int = 8000
    url: str = ""  # or that of a `fedlora serve` that runs already
    admin_key_file: str = ""  # its admin key; else FEDLORA_ADMIN_KEY
    name: str = "federated"  # of the adapter there
    on_commit: tuple[str, ...] = ()  # a command: {adapter}, {round} and {run} are filled in
    timeout_s: float = 300.0  # for the command, and for loading
    keep: int = 2  # committed adapters that stay on the disk

    def __post_init__(self) -> None:
        if self.model and self.url:
            raise ConfigError("serve.model and serve.url: a service of its own, or one that runs; give only one")
        if self.url and not re.match(r"https?://", self.url):
            raise ConfigError(f"serve.url: {self.url!r:.80}; expected http:// or https://")
        if not 0 < self.port <= 65535:
            raise ConfigError(f"serve.port: {self.port}; expected 1 to 65535")
        if not self.timeout_s > 0 or self.keep < 1:
            raise ConfigError(f"serve.timeout_s {self.timeout_s} and serve.keep {self.keep} must be at least 1")
        if self.name and not _NAME.fullmatch(self.name):
            raise ConfigError(f"serve.name: {self.name!r:.80}; expected letters, digits, '-', '_' and '.'")

    @property
    def is_used(self) -> bool:
        return bool(self.model or self.url or self.on_commit)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """All of a `device.toml`; paths are absolute."""

    device: DeviceSection
    data: DataSection = field(default_factory=DataSection)
    policy: Policy = field(default_factory=Policy)
    server: ServerSection = field(default_factory=ServerSection)
    serve: ServeSection = field(default_factory=ServeSection)
    update: UpdateSection = field(default_factory=UpdateSection)
    path: Path = Path(FILE)

    def __post_init__(self) -> None:
        if self.update.url and self.update.name in ("", self.serve.name):
            raise ConfigError(
                f"update.name: {self.update.name!r:.80}; expected the name of a release, and another than serve.name, "
                "under which adapters that are trained here go, unsigned"
            )

    @property
    def state(self) -> Path:
        return Path(self.device.state)

    def with_state(self, folder: Path) -> DeviceConfig:
        """The same device with another folder for what is remembered."""
        return replace(self, device=replace(self.device, state=str(folder.absolute())))

    @property
    def withdrawn(self) -> Path:
        return self.state / "withdrawn.jsonl"

    @property
    def paused(self) -> Path:
        """A file that is there while the device takes no part."""
        return self.state / "paused"

    @property
    def adapters(self) -> Path:
        return self.state / "adapters"

    @property
    def releases(self) -> Path:
        """What `fedlora update` takes, and `fedlora serve` watches."""
        return Path(self.update.folder) if self.update.folder else self.state / "releases"


_SECTIONS = {
    "device": DeviceSection, "data": DataSection, "policy": Policy, "server": ServerSection, "serve": ServeSection,
    "update": UpdateSection,
}  # fmt: skip
_PATHS = {
    "device": ("base", "state", "socket", "at_rest_key"), "data": ("source",), "serve": ("model", "admin_key_file"),
    "server": ("certificates", "key", "identity", "server_identity", "trusted_entities"),
    "update": ("root", "keys", "model", "folder"),
}  # fmt: skip


def read_device(path: Path) -> DeviceConfig:
    """The configuration in a file; relative paths count from it. Raises ConfigError, naming the file and the key."""
    content = flattened(read_toml(path))
    known = {key: default for name, kind in _SECTIONS.items() for key, default in _leaves(kind, f"{name}.")}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise unknown_key(key, known, str(path))
        values[key] = _converted(value, known[key], f"{path}: {key}")
    if "device.name" not in values:
        raise ConfigError(f"{path}: device.name is missing; give the device the name by which its server knows it")
    folder = path.absolute().parent
    try:
        made = {name: _absolute(name, _made(kind, values, f"{name}."), folder) for name, kind in _SECTIONS.items()}
        return DeviceConfig(**made, path=path.absolute())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _absolute(section: str, made: Any, folder: Path) -> Any:
    changes: dict[str, str | tuple[str, ...]] = {}
    for name in _PATHS.get(section, ()):
        value = getattr(made, name)
        if name == "at_rest_key":
            changes[name] = placed_source(value, folder)
        elif value and not (name == "base" and value == EMBEDDED):
            try:
                if isinstance(value, tuple):
                    changes[name] = tuple(os.path.normpath(folder / Path(each).expanduser()) for each in value)
                else:
                    changes[name] = os.path.normpath(folder / Path(value).expanduser())
            except RuntimeError as error:
                raise ConfigError(f"{section}.{name}: {value}: {error}; give the whole path") from None
    return replace(made, **changes) if changes else made


def _made(kind: type[Made], values: Mapping[str, Any], prefix: str) -> Made:
    content: dict[str, Any] = {}
    for part in fields(kind):  # type: ignore[arg-type]
        key = prefix + part.name
        if part.type == "FieldNames":
            content[part.name] = _made(FieldNames, values, f"{key}.")
        elif key in values:
            content[part.name] = values[key]
    return kind(**content)


def _leaves(kind: Any, prefix: str) -> list[tuple[str, Any]]:
    """(dotted key, default) of all values of a section."""
    result: list[tuple[str, Any]] = []
    for part in fields(kind):
        key = prefix + part.name
        if is_dataclass(part.default_factory):
            result += _leaves(part.default_factory, f"{key}.")
        else:
            result.append((key, part.default))
    return result


def _converted(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        raise ConfigError(f"{where}: {value!r:.80}; expected a list of texts")
    if isinstance(default, float) and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{where}: {value!r:.80}; expected a value of type {type(default).__name__}")
    return value
