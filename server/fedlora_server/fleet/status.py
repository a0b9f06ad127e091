"""How a fleet is: its run's rounds, its devices, what was refused, and how long its certificates are valid."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedlora.counted import counted
from fedlora.errors import RunError
from fedlora.identity.keys import PublicKey

from fedlora_server.fleet.authority import WARNING_DAYS, days_left, expiry
from fedlora_server.fleet.control import ONLINE, UNREGISTERED, Node, control_of
from fedlora_server.fleet.current_run import read_current
from fedlora_server.fleet.devices import read_devices
from fedlora_server.fleet.identity import public_identity
from fedlora_server.fleet.settings import FleetSettings
from fedlora_server.run.metrics_file import METRICS
from fedlora_server.run.run_directory import RunDirectory, last_round, read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """One enrolled device."""

    name: str
    node: int | None
    state: str  # online, offline, never: not seen yet; unknown: SuperLink does not answer
    last_round: int | None = None  # the last that counted its training
    key: str = ""  # the id of the pair that signs its answers; empty where it signs none


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """What `fedlora server status` tells."""

    address: str
    is_up: bool
    run: str = ""  # its directory
    run_state: str = "none"
    round: int = 0
    rounds: int = 0
    adapter: str = ""  # the last committed
    loss: float | None = None  # the mean of the devices' last held-out losses
    bytes_up: int = 0
    bytes_down: int = 0
    refusals: dict[str, int] = field(default_factory=dict)  # by reason, over all rounds
    devices: list[DeviceStatus] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    key: str = ""  # the id of the pair that signs instructions and rounds; empty where nothing is signed
    certificate_expires: str = ""
    certificate_days: int = 0
    ca_expires: str = ""
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def fleet_status(settings: FleetSettings) -> FleetStatus:
    """The status of a fleet, whether its server runs or not. Raises ConfigError where its folder is damaged."""
    devices, current = read_devices(settings.at("devices.json")), read_current(settings.at("run.json"))
    nodes: dict[str, Node] | None
    try:
        with control_of(settings) as control:
            nodes = {node.public_key: node for node in control.nodes() if node.status != UNREGISTERED}
    except RunError:
        nodes = None
    records = _records(Path(current.output)) if current else []
    trained = {name: record["round"] for record in records for name in record["train_loss"]}
    states = [
        DeviceStatus(
            name=entry.name,
            node=entry.node,
            state=_state(nodes, entry.public_key),
            last_round=trained.get(entry.name),
            key=_id_of(entry.identity),
        )
        for entry in devices.current
    ]
    losses = [record["loss"] for record in records if record["loss"]]
    refusals: Counter[str] = Counter()
    for record in records:
        refusals.update(record["excluded"])
    output = Path(current.output) if current else Path()
    done = last_round(output) if current else 0
    certificate, ca = settings.at("tls", "server.crt"), settings.at("tls", "ca.crt")
    return FleetStatus(
        address=settings.address,
        is_up=nodes is not None,
        run=str(output) if current else "",
        run_state=current.state if current else "none",
        round=done,
        rounds=int(current.config.get("server.rounds", 0)) if current else 0,
        adapter=str(RunDirectory.adapter_of(output, done)) if done else "",
        loss=fmean(losses[-1].values()) if losses else None,
        bytes_up=sum(record["bytes_up"] for record in records),
        bytes_down=sum(record["bytes_down"] for record in records),
        refusals=dict(refusals),
        devices=states,
        revoked=[entry.name for entry in devices.entries if entry.revoked],
        key=_id_of(public_identity(settings.folder)),
        certificate_expires=f"{expiry(certificate):%Y-%m-%d}",
        certificate_days=days_left(certificate),
        ca_expires=f"{expiry(ca):%Y-%m-%d}",
        warnings=_warnings(settings),
    )


def status_lines(status: FleetStatus) -> list[str]:
    """The status for a person."""
    up = "answers" if status.is_up else "does not answer (fedlora server run starts it)"
    lines = [f"server       {status.address}, SuperLink {up}"]
    if status.run:
        lines.append(f"run          {status.run_state}, round {status.round} of {status.rounds}: {status.run}")
        loss = "not measured yet" if status.loss is None else f"{status.loss:.4f}, mean held-out"
        lines.append(f"last loss    {loss}")
        lines.append(f"bytes        {status.bytes_down:,} down, {status.bytes_up:,} up")
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(status.refusals.items())) or "none"
        lines.append(f"refusals     {told}")
        if status.adapter:
            lines.append(f"adapter      {status.adapter}")
    else:
        lines.append("run          none yet")
    missing = [device.name for device in status.devices if device.state != ONLINE]
    lines.append(f"devices      {len(status.devices) - len(missing)} of {len(status.devices)} are connected")
    unsigned = [device.name for device in status.devices if not device.key]
    if not status.key:
        lines.append("signatures   none: this fleet signs nothing (fedlora server rotate --identity)")
    else:
        but = f", but of {', '.join(unsigned)}" if unsigned else ""
        lines.append(f"signatures   by {status.key[:16]}, and of every device's answer{but}")
    for device in status.devices:
        last = f", last counted in round {device.last_round}" if device.last_round else ""
        lines.append(f"  {device.name:<20} {device.state}{last}")
    if status.revoked:
        lines.append(f"revoked      {', '.join(status.revoked)}")
    lines.append(
        f"certificate  valid until {status.certificate_expires} ({counted(status.certificate_days, 'day')}), its CA until "
        f"{status.ca_expires}"
    )
    return [*lines, *(f"warning: {warning}" for warning in status.warnings)]


def _id_of(pem: str) -> str:
    return PublicKey.from_pem(pem).keyid if pem else ""


def _state(nodes: dict[str, Node] | None, public_key: str) -> str:
    if nodes is None:
        return "unknown"
    node = nodes.get(public_key)
    return "never" if node is None or node.status == "registered" else node.status


def _records(output: Path) -> list[dict[str, Any]]:
    return read_metrics(output) if (output / METRICS).is_file() else []


def _warnings(settings: FleetSettings) -> list[str]:
    found = []
    for name, what in (("server.crt", f"fedlora server rotate {settings.folder}"), ("ca.crt", "make a new fleet")):
        left = days_left(settings.at("tls", name))
        if left <= WARNING_DAYS:
            found.append(f"{name} {'expired' if left < 0 else 'expires in ' + counted(left, 'day')}: {what}")
    if settings.is_open:
        found.append(
            f"SuperLink listens on {settings.listen}: whoever reaches it starts runs; use 127.0.0.1 and nginx.conf"
        )
    return found
