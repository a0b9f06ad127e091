"""The tables of how runs were configured and computed: what differs first."""

from __future__ import annotations

from fedlora_simulations.reports.groups import Panel
from fedlora_simulations.reports.tables import Table, absent, name_cell, table

_OF_ONE_RUN = ("seed", "name", "output")


def differing_table(panel: Panel) -> Table | None:
    """The keys that are not the same in all groups; None where there is one group."""
    if len(panel.groups) < 2:
        return None
    rows = []
    for key in panel.differing():
        values = [group.config.get(key) for group in panel.groups]
        rows.append([name_cell(key), *(absent() if value in (None, "") else name_cell(value) for value in values)])
    bases = [group.runs[0].base for group in panel.groups]
    if len(set(bases)) > 1:
        rows.append([name_cell("base"), *(name_cell(group.config["base"]) for group in panel.groups)])
        rows.append([name_cell("fingerprint of the base"), *(name_cell(base[:16] or "\N{EN DASH}") for base in bases)])
    rows.append([name_cell("seeds"), *(name_cell(", ".join(map(str, group.seeds))) for group in panel.groups)])
    headings = ["", *(group.name for group in panel.groups)]
    return table("differs", "What differs", headings, rows, columns=[False] * len(headings))


def configuration_table(panel: Panel) -> Table:
    """Every key that all groups share; those of single runs where there is but one."""
    single = sum(len(group.runs) for group in panel.groups) == 1
    differing = set(panel.differing())
    rows = [
        [name_cell(key), name_cell(value)]
        for key, value in panel.groups[0].config.items()
        if key not in differing and (single or key not in _OF_ONE_RUN)
    ]
    return table("configuration", "Configuration", ["key", "value"], rows, columns=[False, False])


def environment_table(panel: Panel) -> Table | None:
    """With what the runs were computed: a column for each that differs."""
    found: list[tuple[str, dict[str, str]]] = []
    for group in panel.groups:
        for run in group.runs:
            own = dict(run.environment)
            if own and all(own != other for _, other in found):
                found.append((run.name, own))
    if not found:
        return None
    keys = dict.fromkeys(key for _, own in found for key in own)
    rows = [[name_cell(key), *(name_cell(own.get(key, "\N{EN DASH}")) for _, own in found)] for key in keys]
    headings = ["", "version"] if len(found) == 1 else ["", *(name for name, _ in found)]
    return table("versions", "Versions", headings, rows, columns=[False] * len(headings))
