"""The tables of a study: on the console, and in DIR/table.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf, isnan, nan
from pathlib import Path
from statistics import fmean

from fedlora.counted import counted
from fedlora.files.atomic import write_text
from rich.table import Table
from rich.text import Text

from fedlora_simulations.narrow import within
from fedlora_simulations.study.definition import POOLED, Study
from fedlora_simulations.study.numbers import BASE, Line, data_sentence, lines, loss_unit
from fedlora_simulations.study.plan import all_runs, choose, tuning_values
from fedlora_simulations.study.plot import PLOT
from fedlora_simulations.study.results import Results

TABLE = "table.md"

_CALLED = {
    "loss": "Final held-out loss", "weighted_loss": "Final held-out loss, weighted by examples,",
    "median_loss": "Final held-out loss of the median device", "worst_tenth": "Final held-out loss of the worst tenth",
    "accuracy": "Final held-out accuracy", "macro_f1": "Final held-out macro F1",
    "mcc": "Final held-out Matthews' correlation", "worst_tenth_accuracy": "Final held-out accuracy of the worst tenth",
}  # fmt: skip
_OVERVIEW = "The losses of all settings, the methods in the order of their mean distance from the pooled runs."

_Column = tuple[str, Callable[[Line], float], str, bool]  # heading, value, format, whether less is better
_COLUMNS: tuple[_Column, ...] = (
    ("loss", lambda line: line.loss, ".3f", True),
    ("above pooled", lambda line: line.above_pooled, ".3f", True),
    ("below base", lambda line: line.below_base, ".3f", False),
    ("kB down", lambda line: line.kb_down, ".1f", True),
    ("kB up", lambda line: line.kb_up, ".1f", True),
    ("error", lambda line: line.aggregation_error, ".1%", True),
    ("server s", lambda line: line.server_s, ".3f", True),
)

_LEGEND = """\
Loss: nats per {unit} after the last round, the unweighted mean over all devices, each on its own held-out text; mean and
sample standard deviation over the seeds. Pooled: one training on the text of all devices together, for as many steps as
a device takes in all rounds, each on a batch as large as those of all devices together (so with every device in every
round, whatever the setting), with one AdamW all along. kB: of one device's training message, the mean over devices and
rounds; messages that only measure are not counted. Error: the distance of what the server commits from the weighted
mean of the products B A, relative to that mean, averaged over the rounds; empty where the server cannot know it, and
with an optimizer of the server it holds the step that this one takes on purpose. Server s: checking, aggregating
and committing, per round, on the cores on which the devices train meanwhile. The best method of each column is bold."""


def console_tables(study: Study, results: Results, width: int = 80) -> list[Table]:
    """Of all settings, of each setting, and of the learning rates, none wider than `width`."""
    tables = _on_console(width, "all settings", *_overview(study, results))
    for setting in study.settings:
        found = lines(study, results, setting)
        rows: list[list[str | Text]] = [
            [name, *(Text(text, style="bold green" if is_best else "") for text, is_best in cells)]
            for name, cells in _rows(found)
        ]
        of_setting = within(width, setting, ["", *(heading for heading, *_ in _COLUMNS)], rows)
        told = "\n".join(filter(None, [data_sentence(study, results, setting), *_remarks(found)]))
        of_setting[-1].caption = told or None
        tables += of_setting
    return [*tables, *_on_console(width, f"learning rates, by {study.tuning.choose_by}", *_rates(study, results))]


def write_table(study: Study, results: Results, directory: Path) -> Path:
    """Write DIR/table.md and return its path."""
    parts = [f"# {study.name}", _LEGEND.format(unit=loss_unit(study, results)), f"![Final losses]({PLOT})"]
    parts += ["## All settings", _OVERVIEW, _markdown(*_overview(study, results))]
    for setting in study.settings:
        found = lines(study, results, setting)
        rows = [
            [name, *(f"**{text}**" if is_best else text for text, is_best in cells)] for name, cells in _rows(found)
        ]
        parts += [f"## {setting}", _markdown(["", *(heading for heading, *_ in _COLUMNS)], rows)]
        if told := data_sentence(study, results, setting):
            parts.append(told)
        if remarks := _remarks(found):
            parts.append("\n".join(f"- {remark}" for remark in remarks))
    parts += ["## Learning rates", _rates_sentence(study), _markdown(*_rates(study, results))]
    parts += ["## Configuration", "\n".join(f"- {item}" for item in _configuration(study, results))]
    write_text(directory / TABLE, "\n\n".join(parts) + "\n")
    return directory / TABLE


def _overview(study: Study, results: Results) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the losses by setting, the best method of each bold; the least mean of them first."""
    columns = {setting: {line.name: line for line in lines(study, results, setting)} for setting in study.settings}
    found = {name: [column[name] for column in columns.values()] for name in (BASE, *study.rows)}
    best = [
        min((found[row][number].loss for row in study.methods if not isnan(found[row][number].loss)), default=nan)
        for number in range(len(columns))
    ]
    means = {name: fmean(line.above_pooled for line in mine) for name, mine in found.items()}
    rows = []
    for name in sorted(found, key=lambda name: -inf if name == POOLED else inf if isnan(means[name]) else means[name]):
        cells = []
        for line, least in zip(found[name], best, strict=True):
            text = _text(line.loss, ".3f")
            text += "" if isnan(line.deviation) else f" ± {line.deviation:.3f}"
            cells.append(f"**{text}**" if line.is_method and line.loss == least else text)
        rows.append([name, *cells, _text(means[name], ".3f")])
    return ["", *study.settings, "above pooled, mean"], rows


def _rows(found: Sequence[Line]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(name, [(text, whether it is the best of the methods)]) of each line."""
    result = []
    for line in found:
        cells = []
        for number, (_, value_of, form, is_less_better) in enumerate(_COLUMNS):
            text = _text(value_of(line), form)
            values = [value_of(other) for other in found if other.is_method and not isnan(value_of(other))]
            best = _text((min if is_less_better else max)(values), form) if values else ""
            is_best = line.is_method and text == best != ""
            if number == 0 and not isnan(line.deviation):
                text += f" ± {line.deviation:.3f}"
            cells.append((text, is_best))
        result.append((line.name, cells))
    return result


def _text(value: float, form: str) -> str:
    return "" if isnan(value) else format(value, form)


def _remarks(found: Sequence[Line]) -> list[str]:
    return [f"{line.name}: {remark}" for line in found for remark in line.remarks]


def _rates(study: Study, results: Results) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of what is chosen by, by learning rate; that of the choice bold."""
    choices, rows = choose(study, results), []
    for row in study.rows:
        choice, cells = choices.get(row), [row]
        for lr, value in tuning_values(study, row, results).items():
            text = "" if value is None else f"{value:.3f}"
            cells.append(f"**{text}**" if choice and choice.lr == lr else text)
        rows.append([*cells, f"at the {choice.edge} of the grid" if choice and choice.edge else ""])
    return ["", *(f"{lr:g}" for lr in study.tuning.lr), ""], rows


def _on_console(width: int, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    styled = [
        [Text(cell.strip("*"), style="bold green" if cell.startswith("**") else "") for cell in row] for row in rows
    ]
    return within(width, title, headings, styled)


def _rates_sentence(study: Study) -> str:
    tuning = study.tuning
    return (
        f"{_CALLED[tuning.choose_by]} by `train.lr` on the setting '{tuning.setting}' with seed {tuning.seed}; the best is "
        "used in all settings and with all seeds."
    )


def _configuration(study: Study, results: Results) -> list[str]:
    """What was run, and on what."""
    found = [result for run in all_runs(study, results) if (result := results.get(run.digest))]
    items = [f"all runs: {_keys(study.scenario)}"]
    items += [f"{setting}: {_keys(changes)}" for setting, changes in study.settings.items()]
    items += [f"{row}: {_keys(changes)}" for row, changes in study.methods.items() if changes != {"server.method": row}]
    items.append(f"seeds: {', '.join(map(str, study.seeds))}")
    ways = Counter(
        ", ".join(f"{key} {result.config[f'train.{key}']}" for key in ("compute", "kernels", "device"))
        for result in found
        if not result.failure
    )
    for how, count in ways.most_common():
        items.append(f"computed with: {how}" + (f" ({count} of {counted(len(found), 'run')})" if len(ways) > 1 else ""))
    for machine in sorted({result.machine for result in found}):
        seconds = sum(result.seconds for result in found if result.machine == machine)
        items.append(f"machine: {machine}, {counted(round(seconds / 60), 'minute')} for {counted(len(found), 'run')}")
    return items


def _keys(changes: Mapping[str, object]) -> str:
    return ", ".join(f"`{key} = {value}`" for key, value in changes.items())


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *(["--:"] * (len(headings) - 1))]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [headings, marks, *rows]
    )
