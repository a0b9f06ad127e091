"""The server: it runs rounds and aggregates adapters."""

from typing import TYPE_CHECKING

from fedlora.face import lazy_face

if TYPE_CHECKING:
    from fedlora_server.aggregation.aggregation import Aggregation
    from fedlora_server.aggregation.robust_rule import RobustRule
    from fedlora_server.methods import find_method
    from fedlora_server.methods.method import Aggregator, Global, Method
    from fedlora_server.rounds import Rounds
    from fedlora_server.run.run_directory import RunDirectory, open_run, read_metrics

__all__ = [
    "Aggregation",
    "Aggregator",
    "Global",
    "Method",
    "RobustRule",
    "Rounds",
    "RunDirectory",
    "find_method",
    "open_run",
    "read_metrics",
]

if not TYPE_CHECKING:  # to a type checker, any name would be there
    __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Aggregation": "aggregation.aggregation",
            "Aggregator": "methods.method",
            "Global": "methods.method",
            "Method": "methods.method",
            "RobustRule": "aggregation.robust_rule",
            "Rounds": "rounds",
            "RunDirectory": "run.run_directory",
            "find_method": "methods",
            "open_run": "run.run_directory",
            "read_metrics": "run.run_directory",
        },
    )
