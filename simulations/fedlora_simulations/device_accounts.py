"""What of each device's data a simulation trains on and measures: told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.config.run import RunConfig
from fedlora.errors import DataError
from fedlora.terminal import warning
from fedlora_client.data.account import Account, account, by_file, chat_notices, left_out_notice, notices
from fedlora_client.device import Device
from rich.console import Console
from rich.table import Table

from fedlora_simulations.narrow import narrow_table
from fedlora_simulations.nodes import node_configs

_MOST_DEVICES = 20  # of which each is told; of more, those with something that is not learned
_COLUMNS = ("train on", "cut", "left out", "held out", "left out of these")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAccount:
    """One device: all of its data, its files where there are several, and what else is to be told."""

    all: Account
    files: tuple[Account, ...] = ()
    notices: tuple[str, ...] = ()
    without_answer: int = 0  # of those that are left out, for want of room
    length: int = 0  # tokens of a window

    @property
    def is_whole(self) -> bool:
        return not (self.all.cut or self.all.left_out or self.all.held_out_left_out or self.notices)


def data_accounts(config: RunConfig) -> list[DeviceAccount]:
    """That of each device, in order. Raises DataError for one with nothing to train on."""
    return [_of(Device(config, node), measures=config.server.evaluate) for node in node_configs(config)]


def total_of(accounts: Sequence[DeviceAccount]) -> Account:
    """All devices together."""
    sums = {
        name: sum(getattr(device.all, name) for device in accounts)
        for name in ("train", "cut", "left_out", "held_out", "held_out_left_out")
    }
    return Account(name="all", **sums)


def tell_data(accounts: Sequence[DeviceAccount], console: Console, title: str = "data") -> None:
    """Write a table of the examples of each device and file, and what was not read."""
    table = narrow_table(f"{title}: examples")
    for heading in ("device", *_COLUMNS):
        table.add_column(heading, justify="left" if heading == "device" else "right", overflow="fold")
    shown = [device for device in accounts if len(accounts) <= _MOST_DEVICES or not device.is_whole]
    for device in shown[:_MOST_DEVICES]:
        _add(table, device.all.name, device.all)
        for file in device.files if len(device.files) <= _MOST_DEVICES else ():
            _add(table, f"  {file.name}", file)
    _add(
        table,
        f"all {len(accounts)}" + (f" ({len(shown[:_MOST_DEVICES])} shown)" * (len(shown) > _MOST_DEVICES)),
        total_of(accounts),
    )
    console.print(table)
    for length in sorted({device.length for device in accounts}):
        these = [device for device in accounts if device.length == length]
        without = sum(device.without_answer for device in these)
        if notice := left_out_notice(without, sum(device.all.train for device in these) + without, length):
            console.print(warning(notice), soft_wrap=True)
    for device in shown[:_MOST_DEVICES]:
        for notice in device.notices:
            console.print(f"device {device.all.name}: {notice}", soft_wrap=True, highlight=False, markup=False)


def _of(device: Device, *, measures: bool) -> DeviceAccount:
    data = device.data
    train = None if data.never_trains else device.train_windows()
    told = [*notices(data), *(chat_notices(train) if train else ("it never trains: all of it is measured",))]
    held_out = None
    if measures and data.held_out:
        try:
            held_out = device.held_out_windows()
        except DataError as error:
            told.append(f"it will not be measured: {str(error).removeprefix(f'device {data.name}: ')}")
    files = tuple(by_file(data, train, held_out)) if train and len(data.sources) > 1 else ()
    return DeviceAccount(
        all=account(data, train, held_out), files=files, notices=tuple(told),
        without_answer=train.skipped if train else 0, length=device.config.train.sequence_length,
    )  # fmt: skip


def _add(table: Table, name: str, account: Account) -> None:
    counts = (account.train, account.cut, account.left_out, account.held_out, account.held_out_left_out)
    table.add_row(name, *map(str, counts))
