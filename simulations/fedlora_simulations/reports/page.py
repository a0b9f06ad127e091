"""A report as one HTML file: it loads nothing, runs nothing, and shows what strangers wrote as text."""

from __future__ import annotations

from functools import partial
from importlib.resources import files

import jinja2

from fedlora_simulations.reports.contents import Report
from fedlora_simulations.reports.drawing import NARROW, WIDE, inline
from fedlora_simulations.reports.palette import SERIES, variables

# Styles stand in the page and in its pictures; nothing else is let in, whatever a name in it may have tried.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_MOST_OPEN = 12  # rows of a table that is not folded away


def page(report: Report) -> str:
    """The HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedlora_simulations.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (files("fedlora_simulations.reports") / "report.css").read_text(encoding="utf-8")
    icon = (files("fedlora_simulations.reports") / "icon.svg").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        report=report,
        policy=POLICY,
        style=style.replace("/* series: light */", variables(False)).replace("/* series: dark */", variables(True)),
        icon=icon,
        narrow=partial(inline, width=NARROW),
        wide=partial(inline, width=WIDE),
        colours=len(SERIES),
        most_open=_MOST_OPEN,
    )  # fmt: skip
