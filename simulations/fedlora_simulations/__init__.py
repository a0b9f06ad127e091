"""Simulated federations: scenarios, data sets, engines, studies and reports."""

from typing import TYPE_CHECKING

from fedlora.face import lazy_face
from fedlora.threads import wait_without_spinning

if TYPE_CHECKING:
    from fedlora_simulations.report import write_report
    from fedlora_simulations.simulation import rounds_table, simulate
    from fedlora_simulations.study.definition import Study
    from fedlora_simulations.study.file import read_study
    from fedlora_simulations.study.results import Results
    from fedlora_simulations.study.runs import run_study

__all__ = ["Results", "Study", "read_study", "rounds_table", "run_study", "simulate", "write_report"]

if not TYPE_CHECKING:  # to a type checker, any name would be there
    __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Results": "study.results",
            "Study": "study.definition",
            "read_study": "study.file",
            "rounds_table": "simulation",
            "run_study": "study.runs",
            "simulate": "simulation",
            "write_report": "report",
        },
    )

wait_without_spinning()
