"""A run's report: one HTML file with its pictures inside."""

from __future__ import annotations

from pathlib import Path

from fedlora_simulations.reports.contents import report_of
from fedlora_simulations.reports.groups import grouped
from fedlora_simulations.reports.output import PAGE, write_page
from fedlora_simulations.reports.run import read_run

REPORT = PAGE


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html from what the run left there, and return its path. Raises FedloraError."""
    run = Path(run)
    return write_page(report_of([grouped([read_run(run)])]), run / REPORT)
