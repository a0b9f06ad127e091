"""A soup of a run: the mean of adapters that it made, of its rounds or of its devices, in place of the last one alone.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", 2022 (arXiv:2203.05482). What is averaged are the products: W + mean of gamma B A; of kinds without
products the numbers, as `fedavg` averages them, and heads likewise. The uniform soup takes all ingredients. The greedy one
goes through them from the least held-out loss to the largest, and keeps each with which the mean is no worse than without
it, so that it is never worse than the best ingredient on what it was chosen by.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.base.pack import open_pack
from fedlora.combine.combining import Told, combine, combined_adapter
from fedlora.combine.sources import Source, open_source
from fedlora.combine.ways import Combination, Way
from fedlora.config.run import DataConfig, RunConfig, Scalar
from fedlora.counted import counted, ranges
from fedlora.errors import ConfigError, DataError
from fedlora.files.atomic import check_directory
from fedlora.files.documents import read_object
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import BY_NAME
from fedlora.peft.directory import CONFIG, PeftDirectory, write_peft
from fedlora.peft.origin import MOST_PARTS
from fedlora_client.device import Device
from fedlora_client.opened import Part
from fedlora_server.methods import find_method
from fedlora_server.run.loss_over_devices import loss_over_devices
from fedlora_server.run.round_directory import check_committed
from fedlora_server.run.run_directory import RUN, RunDirectory, committed_rounds, read_config

from fedlora_simulations.device_threads import DeviceThreads
from fedlora_simulations.nodes import node_configs


@dataclass(frozen=True, slots=True, kw_only=True)
class SoupOrder:
    """What a soup is made of, and how."""

    run: Path
    greedy: bool = False
    rounds: str = ""  # such as 3-8 or 2,5,8; empty: all that are committed
    devices: bool = False  # of what each device kept of the last of these rounds
    how: Way | None = None  # None: svd, and linear where adapters have no products
    svd_rank: int | None = None
    data: str = ""  # a file or folder to measure on; empty: the held-out data of the run's devices
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Soup:
    """What was made; losses are means over the devices, of held-out data, in nats per token or per text."""

    alone: dict[str, float]  # of each ingredient
    base: float
    taken: tuple[str, ...]  # ingredients, in the order in which they were taken
    loss: float
    test: dict[str, float]  # where the data have a test set: of the base, the best ingredient and the soup


def make_soup(
    order: SoupOrder, output: Path, *, replace: bool = False, tell: Callable[[str], None] = lambda sentence: None
) -> Soup:
    """Write the soup as a PEFT directory. Raises FedloraError."""
    check_directory(output, replace=CONFIG if replace else None)
    config = dataclasses.replace(read_config(order.run), output=str(order.run))
    rounds = _chosen(order.rounds, committed_rounds(order.run), order.run)
    order = dataclasses.replace(order, how=_way(order, config))
    _check_count(order, config.simulation.devices if order.devices else len(rounds))
    with tempfile.TemporaryDirectory() as folder, DeviceThreads(order.workers) as threads:
        devices = list(threads.map(lambda node: Device(*node), _nodes(config, order)))
        measure = _Measure(_measurable(devices, tell), threads)
        ingredients = _ingredients(order, config, rounds, devices, Path(folder))
        base = measure(None)
        alone: dict[str, float] = {}
        for name, ingredient in ingredients.items():
            alone[name] = measure(combined_adapter([ingredient], _mean([ingredient], order)))
            tell(f"{name}: {alone[name]:.4f}")

        measured: dict[tuple[str, ...], float] = {}

        def of(names: Sequence[str]) -> float:
            """The loss of the mean of several, measured and told once."""
            if tuple(names) not in measured:
                chosen = [ingredients[name] for name in names]
                measured[tuple(names)] = measure(combined_adapter(chosen, _mean(chosen, order)))
                tell(f"{' + '.join(names)}: {measured[tuple(names)]:.4f}")
            return measured[tuple(names)]

        taken = greedily(alone, of) if order.greedy else tuple(ingredients)
        chosen = [ingredients[name] for name in taken]
        loss = of(taken) if len(taken) > 1 else alone[taken[0]]
        run_name = order.run.absolute().name
        told = Told(
            how=f"{'greedy' if order.greedy else 'uniform'} soup, {_mean(chosen, order)}",
            names=tuple(f"{run_name} {name}" for name in taken),
        )
        combine([i.directory for i in chosen], output, _mean(chosen, order), told=told, replace=replace)
        test: dict[str, float] = {}
        if any(device.data.test for device in devices):
            best = ingredients[min(alone, key=alone.__getitem__)]
            test["base"] = measure(None, "test")
            test["best ingredient"] = measure(combined_adapter([best], _mean([best], order)), "test")
            test["soup"] = measure(combined_adapter(chosen, _mean(chosen, order)), "test")
    return Soup(alone=alone, base=base, taken=taken, loss=loss, test=test)


def greedily(alone: dict[str, float], of: Callable[[Sequence[str]], float]) -> tuple[str, ...]:
    """The ingredients of the greedy soup: `alone` has the loss of each, `of` gives that of the mean of several."""
    order = sorted(alone, key=alone.__getitem__)
    taken, best = order[:1], alone[order[0]]
    for name in order[1:]:
        loss = of([*taken, name])
        if loss <= best:
            taken, best = [*taken, name], loss
    return tuple(taken)


class _Measure:
    """The mean over the devices of an adapter's loss."""

    def __init__(self, devices: Sequence[Device], threads: DeviceThreads) -> None:
        self._devices, self._threads = devices, threads

    def __call__(self, adapter: Adapter | None, part: Part = "held_out") -> float:
        having = [device for device in self._devices if part != "test" or device.data.test]
        measured = self._threads.map(lambda device: device.measure(part, adapter), having)
        losses = {str(place): each.loss for place, each in enumerate(measured)}
        return loss_over_devices(losses, {})["mean"]


def _measurable(devices: Sequence[Device], tell: Callable[[str], None]) -> list[Device]:
    """The devices that have something to measure on."""
    found = []
    for device in devices:
        try:
            device.held_out_windows()
        except DataError as error:
            tell(str(error))
        else:
            found.append(device)
    if not found:
        raise DataError("no device holds out anything to measure on; give --data a file with more text")
    return found


def _way(order: SoupOrder, config: RunConfig) -> Way:
    """How the mean is made. Raises ConfigError where the run's adapters have none that is made so."""
    kind = BY_NAME[config.lora.method]
    if kind.name == "lora":
        return order.how or "svd"
    if kind.has_factors:
        raise ConfigError(
            f"{order.run}: its adapters are {kind.title}, whose rows have lengths that belong to one product: a mean of "
            "several has none that trained; take one of its rounds"
        )
    if order.how not in (None, "linear") or order.svd_rank is not None:
        given = "--svd-rank" if order.svd_rank is not None else f"--how {order.how}"
        raise ConfigError(
            f"{given}: {order.run} is of {kind.title}, of which the numbers are averaged, and no products; leave it out"
        )
    return "linear"


def _check_count(order: SoupOrder, count: int) -> None:
    """Raise ConfigError for more ingredients than a soup can name, before hours are spent on measuring them."""
    if count > MOST_PARTS and not order.greedy:
        fewer = "" if order.devices else "name fewer with --rounds, or "
        raise ConfigError(
            f"{order.run}: {counted(count, 'device' if order.devices else 'round')}; a soup names at most {MOST_PARTS}: "
            f"{fewer}choose with --greedy"
        )


def _mean(adapters: Sequence[Source], order: SoupOrder) -> Combination:
    weights, how = (1 / len(adapters),) * len(adapters), order.how or "svd"
    if len(adapters) == 1 and order.svd_rank is None and how != "linear":
        return Combination(weights=weights, how="cat")  # it is itself
    return Combination(weights=weights, how=how, svd_rank=order.svd_rank)


def _nodes(config: RunConfig, order: SoupOrder) -> list[tuple[RunConfig, dict[str, Scalar]]]:
    """What each device is made of."""
    if order.data:
        data = DataConfig(
            name="files", max_bytes=config.data.max_bytes, fields=dataclasses.replace(config.data.fields, owner="")
        )
        return [(dataclasses.replace(config, data=data), {"data-path": order.data})]
    return [(config, node) for node in node_configs(config)]


def _ingredients(
    order: SoupOrder, config: RunConfig, rounds: Sequence[int], devices: Sequence[Device], folder: Path
) -> dict[str, Source]:
    """{name: adapter} of what the soup is made of."""
    method = find_method(config.server.method)
    run = str(read_object(order.run / RUN, ConfigError, "a run's number and base").get("run"))
    for number in rounds:
        check_committed(RunDirectory.adapter_of(order.run, number).parent, run)
    if not order.devices:
        if method.personal:
            raise ConfigError(
                f"{order.run}: with {config.server.method} each device keeps a factor for itself, and a round's adapter is "
                "none without it; pass --devices for a soup of what they kept"
            )
        return {f"round {number}": open_source(RunDirectory.adapter_of(order.run, number)) for number in rounds}
    if not method.personal or order.data:
        raise ConfigError(
            f"{order.run}: --devices needs a simulation whose method leaves a factor with each device, such as fedsa; "
            f"this run is of {config.server.method}{', measured on --data' if order.data else ''}: take its rounds"
        )
    number, base = rounds[-1], open_pack(config.base)
    task = method(devices[0].first_adapter().config, config.aggregation, config.seed).task(number)
    shared = open_source(RunDirectory.adapter_of(order.run, number))
    pairs = {module: shared.pair(module) for module in shared.shapes}
    adapter = Adapter(shared.config, pairs, extras=shared.beside().adapter.extras)
    found = {}
    for place, device in enumerate(devices):
        used = device.as_used(adapter, number, task=task, run=run)
        write_peft(
            folder / str(place), PeftDirectory(adapter=used, base_fingerprint=base.fingerprint), base_name=base.source
        )
        found[f"device {device.name}"] = open_source(folder / str(place))
    return found


def _chosen(text: str, there: Sequence[int], run: Path) -> list[int]:
    """The rounds that `text` names, of those that are `there`: numbers and ranges with commas between them."""
    if not there:
        raise ConfigError(f"{run} has committed no round yet; wait for one, or name another run")
    chosen: set[int] = set()
    for entry in text.split(",") if text else ():
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", entry.strip(), re.ASCII)
        named = range(int(found[1]), int(found[2] or found[1]) + 1) if found else ()
        if not named or not set(named) <= set(there):
            raise ConfigError(
                f"--rounds: {run} has committed {ranges(there)}; expected some of these, such as "
                f"{there[0]}-{there[-1]} or {there[-1]}, got {entry!r:.40}"
            )
        chosen.update(named)
    return sorted(chosen or there)
