"""What there is to know of a device from its state folder, whether or not its service runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedlora.counted import counted

from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.state import StateFolder


def report(config: DeviceConfig, rounds: int) -> dict[str, Any]:
    """The status as plain values: the service, the base, the adapter in use, the last rounds, refusals."""
    state = StateFolder(config.state)
    state.check_readable()
    pid = state.holder("trainer")
    told = state.read("status")
    return {
        "name": config.device.name,
        "running": pid is not None,
        "pid": pid,
        "paused": config.paused.exists(),
        "doing": told.get("doing") if pid else None,
        "started": told.get("started"),
        "memory_mb": _memory_mb(pid, "VmRSS"),
        "peak_mb": _memory_mb(pid, "VmHWM"),
        "processes": state.read("processes").get("pids", {}) if _is_supervised(state) else {},
        "link": state.read("link") or None,
        "base": config.device.base,
        "base_fingerprint": told.get("base_fingerprint"),
        "base_error": told.get("base_error") or None,
        "adapter": state.read("adapter") or None,
        "adapter_error": told.get("adapter_error") or None,
        "published": state.read("published") or None,
        "today": {key: _counted(value) for key, value in state.read("day").items()},
        "rounds": state.rounds(rounds),
        "refused": told.get("refused", {}),
        "notice": told.get("notice") or None,
        "policy": list(config.policy.words()),
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """The same for a person."""
    if told["running"]:
        yield f"{told['name']}: running (process {told['pid']}), {told['doing']}"
        yield f"memory: {told['memory_mb']} MB now, {told['peak_mb']} MB at most"
    else:
        yield f"{told['name']}: the service is not running; what follows is from when it last ran"
    if told["paused"]:
        yield "paused: it refuses whatever it is asked, until fedlora device resume"
    others = {name: pid for name, pid in told["processes"].items() if name != "trainer"}
    if others:
        yield "processes: " + ", ".join(f"{name} {pid or 'is being started'}" for name, pid in others.items())
    if told["link"] and others.get("link"):
        yield f"link: {told['link'].get('said')}, since {told['link'].get('at')}"
    fingerprint = told["base_fingerprint"]
    opened = f" ({fingerprint:.16})" if fingerprint else f", not opened: {told['base_error'] or 'not yet'}"
    yield f"base: {told['base']}{opened}"
    adapter, published = told["adapter"], told["published"]
    if adapter:
        yield f"adapter: round {adapter.get('round')} of {adapter.get('name')}, {adapter.get('path')}"
    else:
        yield "adapter: none was committed yet"
    if published:
        error = published.get("error")
        yield f"put into use: round {published.get('round')}, {error or 'well'} ({published.get('at')})"
    if told["adapter_error"]:
        yield f"adapter: {told['adapter_error']}"
    today = told["today"]
    if today:
        yield f"day {today.get('day')}: {counted(today.get('rounds', 0), 'round')}, {today.get('bytes'):,} bytes"
    for number, entry in enumerate(told["rounds"]):
        if not number:
            yield "last answers:"
        yield "  " + _round(entry)
    for reason, what in told["refused"].items():
        if isinstance(what, dict):
            yield f"refused {counted(what.get('count', 0), 'time')}, {reason}: {what.get('said')} ({what.get('at')})"
    if told["notice"]:
        yield f"notice: {told['notice']}"
    yield "policy: " + "; ".join(told["policy"])


def _round(entry: dict[str, Any]) -> str:
    # One that was refused was not looked into.
    of = "" if entry.get("round") is None else f" round {entry['round']} of {entry.get('run')}"
    where = f"{entry.get('at')} {entry.get('kind')}{of}"
    if entry.get("refusal"):
        return f"{where}: {entry['refusal']}: {entry.get('said')}"
    loss = entry.get("loss")
    told = [f"loss {loss:.4f}"] if isinstance(loss, float) else []
    told += [f"{entry.get('seconds')} s", f"{_bytes(entry, 'bytes_down')} bytes down, {_bytes(entry, 'bytes_up')} up"]
    told += [f"{entry.get('rss_mb')} MB, {entry.get('peak_mb')} at most"]
    if entry.get("joules"):
        told.append(f"{entry['joules']} J of the {entry.get('energy_of')}")
    return f"{where}: {', '.join(told)}"


def _is_supervised(state: StateFolder) -> bool:
    """Whether who wrote of the processes is there: one that was killed could not say that they ended."""
    return any(state.holder(f"{part}-supervisor") for part in ("trainer", "link", "serve"))


def _bytes(entry: dict[str, Any], key: str) -> str:
    count = entry.get(key)
    return f"{count:,}" if isinstance(count, int) else "?"


def _counted(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _memory_mb(pid: int | None, field: str) -> int | None:
    if pid:
        with suppress(OSError):
            found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            return round(int(found[1]) * 1024 / 1e6) if found else None
    return None
