"""What a study gave, as the panels of a report: one for each setting, with the learning rate that each row has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError

from fedlora_simulations.reports.groups import Group, Panel, check_groups
from fedlora_simulations.reports.run import RunResult
from fedlora_simulations.study.definition import POOLED
from fedlora_simulations.study.results import RESULTS, Result, Results

_KNOWN = {  # keys of a report's numbers, by the fields of a result
    "loss": ("loss", 1.0), "bytes_down": ("kb_down", 1e-3), "bytes_up": ("kb_up", 1e-3),
    "aggregation_error": ("aggregation_error", 1.0), "server_s": ("server_s", 1.0),
}  # fmt: skip
_MEASURES = {  # the same, by what a rate may be chosen by
    "weighted_loss": "loss.weighted_mean", "median_loss": "loss.median", "worst_tenth": "loss.worst_tenth",
    "accuracy": "scores.accuracy", "macro_f1": "scores.macro_f1", "mcc": "scores.mcc",
    "worst_tenth_accuracy": "accuracy.worst_tenth",
}  # fmt: skip
_NO_NUMBERS = {*_KNOWN, "seed", "lr", "base_loss", "seconds"} | {
    "examples", "cut_examples", "left_out_examples", "held_out_examples",
}  # fmt: skip


def is_study(directory: Path) -> bool:
    return (directory / RESULTS).is_file()


def study_panels(directory: Path) -> list[Panel]:
    """A panel for each setting of the study in a directory. Raises ConfigError where no method gave a number."""
    results = Results(directory).all()
    done = [result for result in results if not result.failure]
    if not any(result.row != POOLED for result in done):
        raise ConfigError(
            f"{directory / RESULTS}: no method gave a number yet; wait for the first, or name another study"
        )
    check_groups(len({(result.row, result.setting) for result in results}))
    rates = {row: _rate([result for result in done if result.row == row]) for row in dict.fromkeys(r.row for r in done)}
    chosen = [result for result in done if result.lr == rates[result.row]]
    failed = [result for result in results if result.failure and result.lr == rates.get(result.row, result.lr)]
    tried = {row: _tried([result for result in done if result.row == row]) for row in rates}
    panels = [
        _panel(directory, setting, chosen, failed, tried) for setting in dict.fromkeys(r.setting for r in results)
    ]
    return [panel for panel in panels if panel.groups]


def _rate(results: Sequence[Result]) -> float:
    """The rate of a row: the one that ran in most places; of several, as where nothing but the tuning ran, the best."""
    places = {lr: {(r.setting, r.seed) for r in results if r.lr == lr} for lr in {r.lr for r in results}}
    most = max(map(len, places.values()))
    losses = {
        lr: fmean([r.loss for r in results if r.lr == lr and r.loss is not None] or [float("inf")])
        for lr, ran in places.items()
        if len(ran) == most
    }
    return min(losses, key=lambda lr: (losses[lr], lr))


def _tried(results: Sequence[Result]) -> dict[float, float]:
    """{learning rate: loss} of a row in the place where most rates were tried: the tuning."""
    places: dict[tuple[str, int], dict[float, float]] = {}
    for result in results:
        if result.loss is not None:
            places.setdefault((result.setting, result.seed), {})[result.lr] = result.loss
    return max(places.values(), key=len, default={})


def _panel(
    directory: Path,
    setting: str,
    chosen: Sequence[Result],
    failed: Sequence[Result],
    tried: Mapping[str, Mapping[float, float]],
) -> Panel:
    own = [result for result in chosen if result.setting == setting]
    by_row: dict[str, list[Result]] = {}
    for result in own:
        by_row.setdefault(result.row, []).append(result)
    notices = [f"{r.row}, {setting}, seed {r.seed} failed: {r.failure}" for r in failed if r.setting == setting]
    pooled = {r.seed: r.loss for r in by_row.pop(POOLED, []) or _elsewhere(chosen, own) if r.loss is not None}
    seeds = {result.seed for row in by_row.values() for result in row}
    for row, found in by_row.items():
        if missing := sorted(seeds - {result.seed for result in found}):
            notices.append(f"{row}, {setting}: no result of seed {', '.join(map(str, missing))}")
    groups = tuple(
        Group(name=row, runs=tuple(_run(directory, each) for each in sorted(found, key=lambda r: r.seed)))
        for row, found in by_row.items()
    )  # fmt: skip
    return Panel(
        title=f"{directory.resolve().name}: {setting}",
        groups=groups,
        pooled=pooled,
        notices=tuple(notices),
        rates=tried,
    )


def _elsewhere(chosen: Sequence[Result], own: Sequence[Result]) -> list[Result]:
    """The pooled runs of another setting with the same devices: settings share them."""
    devices = {result.config.get("simulation.devices") for result in own}
    return [r for r in chosen if r.row == POOLED and devices == {r.config.get("simulation.devices")}]


def _run(directory: Path, result: Result) -> RunResult:
    config = {**RunConfig().flat(), **result.config, "seed": result.seed, "train.lr": result.lr}
    last = max(1, int(config["server.rounds"]))
    numbers: dict[int, dict[str, float]] = {0: {}, last: {}}
    for name, (key, scale) in _KNOWN.items():
        if (value := getattr(result, name)) is not None:
            numbers[last][key] = value * scale
    if result.base_loss is not None:
        numbers[0]["loss"] = result.base_loss
    numbers[last] |= {_MEASURES[name]: value for name, value in result.measures.items() if name in _MEASURES}
    numbers[last] |= _more(result)
    return RunResult(
        name=f"{directory.name}: {result.row}, {result.setting}, seed {result.seed}", config=config, unit=result.loss_unit,
        base=str(config["base"]), numbers=numbers, environment={"machine": result.machine} if result.machine else {},
    )  # fmt: skip


def _more(result: Result) -> dict[str, float]:
    """Numbers that a later version keeps."""
    found: dict[str, float] = {}
    for name, value in asdict(result).items():
        if name in _NO_NUMBERS or name in ("config", "excluded", "measures"):
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in parts:
            if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e300:
                found[f"{name}.{key}".strip(".")] = float(number)
    return found


def with_names(panels: Sequence[Panel]) -> list[Panel]:
    """Panels of one study alone need not say its name."""
    heads = {panel.title.partition(": ")[0] for panel in panels}
    if len(heads) > 1:
        return list(panels)
    return [replace(panel, title=panel.title.partition(": ")[2]) for panel in panels]
