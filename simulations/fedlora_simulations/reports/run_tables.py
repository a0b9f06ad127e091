"""The tables of one run: its rounds, its devices, what a round took each."""

from __future__ import annotations

from collections import Counter

from fedlora_server.run.device_costs import COST_UNITS, median_costs
from fedlora_server.run.loss_over_devices import loss_over_devices

from fedlora_simulations.reports.measures import Record
from fedlora_simulations.reports.results import EXAMPLES, counts_of
from fedlora_simulations.reports.run import RunResult
from fedlora_simulations.reports.tables import DASH, Cell, Table, absent, name_cell, number_cell, table

_SCORES = {"test": "test", "scores": "held-out"}  # parts whose accuracy a round has, and their word


def rounds_table(run: RunResult) -> Table:
    """A row for each round."""
    parts = [part for part in _SCORES if any("accuracy" in (record.get(part) or {}) for record in run.records)]
    headings = [
        "round", "answers", f"loss, nats per {run.unit}", "worst tenth", "spread", "least to most",
        *(f"accuracy, {_SCORES[part]}" for part in parts), "error", "down, MB", "up, MB", "server, s", "all, s",
    ]  # fmt: skip
    rows = []
    for record in run.records:
        cells = [name_cell(record["round"]), _answers(record), *_losses(record, run.whole)]
        for part in parts:
            accuracy = (record.get(part) or {}).get("accuracy")
            cells.append(absent() if accuracy is None else number_cell(f"{accuracy:.1%}", accuracy))
        error = record["aggregation_error"]
        cells.append(absent() if error is None else number_cell(f"{error:.2%}", error))
        for name, scale, digits in (
            ("bytes_down", 1e6, 2),
            ("bytes_up", 1e6, 2),
            ("server_s", 1, 2),
            ("seconds", 1, 1),
        ):
            value = record[name] / scale
            cells.append(number_cell(f"{value:.{digits}f}", value))
        rows.append(cells)
    excluded: Counter[str] = Counter()
    for record in run.records:
        excluded.update(record["excluded"])
    told = ", ".join(f"{count} \N{MULTIPLICATION SIGN} {reason}" for reason, count in sorted(excluded.items()))
    return table("rounds", "Rounds", headings, rows, note=f"Answers that did not count: {told}." if told else "")


def all_devices_table(run: RunResult) -> Table:
    """Every device that was heard, with its losses before the first round and after the last, and its examples."""
    first, last = run.records[0]["loss"], run.records[-1]["loss"]
    accuracy, counts = run.records[-1].get("accuracy") or {}, counts_of(run.records)
    told = any(counts.values())
    headings = ["device", "base", "after the last round", "change"]
    headings += ["accuracy"] if accuracy else []
    rows = []
    for name in run.devices:
        before, after = first.get(name), last.get(name)
        change = None if before is None or after is None else after - before
        cells = [name_cell(name), _loss(before), _loss(after)]
        cells.append(absent() if change is None else number_cell(f"{change:+.4f}", change))
        if accuracy:
            cells.append(number_cell(f"{accuracy[name]:.1%}", accuracy[name]) if name in accuracy else absent())
        if told:
            cells += [
                number_cell(str(counts[key][name]), counts[key][name]) if name in counts[key] else absent()
                for key in EXAMPLES
            ]
        rows.append(cells)
    if told:
        totals = [sum(counts[key].values()) for key in EXAMPLES]
        blank = [number_cell("")] * (len(headings) - 1)
        rows.append([name_cell("all"), *blank, *(number_cell(str(total), total) for total in totals)])
        headings += EXAMPLES.values()
    return table("all-devices", "All devices", headings, rows)


def costs_table(run: RunResult) -> Table | None:
    """Medians over the rounds of what training took each device; None where none told."""
    costs = median_costs(record for record in run.records if record["round"])
    units = {name: unit for name, unit in COST_UNITS.items() if any(name in told for told in costs.values())}
    if not units:
        return None
    rows = [[name_cell(device), *(_cost(name, told.get(name)) for name in units)] for device, told in costs.items()]
    return table(
        "costs", "What a round took on each device", ["device", *units.values()], rows,
        note="Medians over the rounds. Download and upload have waiting in them: for the device to ask for work, and the "
        "server for its answer.",
    )  # fmt: skip


def _answers(record: Record) -> Cell:
    return number_cell(f"{record['replies']} of {record['devices']}" if record["round"] else "base")


def _losses(record: Record, whole: int) -> list[Cell]:
    losses = record["loss"]
    over = loss_over_devices(losses, record.get("held_out_examples") or {})
    if "mean" not in over:
        return [absent()] * 4
    fewer = f" ({len(losses)} of {whole})" if len(losses) < whole else ""
    return [
        number_cell(f"{over['mean']:.4f}{fewer}", over["mean"]), _loss(over.get("worst_tenth")), _loss(over.get("std")),
        number_cell(f"{over['min']:.4f} to {over['max']:.4f}" if {"min", "max"} <= over.keys() else DASH),
    ]  # fmt: skip


def _loss(value: float | None) -> Cell:
    return absent() if value is None else number_cell(f"{value:.4f}", value)


def _cost(name: str, value: float | None) -> Cell:
    if value is None:
        return absent()
    if name.startswith("bytes"):
        return number_cell(str(int(value)), value)
    return number_cell(f"{value:.0f}" if name.endswith("_mb") else f"{value:.3f}", value)
