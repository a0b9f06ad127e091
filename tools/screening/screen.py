"""Screen suspects on an encoder's last block: final accuracy on the test set, beside one training on all data together.

    python tools/screening/screen.py FILE -o DIR

FILE is TOML: `seeds`, a `[scenario]`, and `[rows]`, {name: changed keys}. Rows named "pooled..." are the pooled training. A
row's run is one line of DIR/results.jsonl, and what is there is not run again. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

from fedlora.config.run import RunConfig
from fedlora.files.documents import flattened
from fedlora.files.temporary import own_folder
from fedlora.wire.label_counts import LabelCounts
from fedlora_client import opened
from fedlora_client.device import Device
from fedlora_server.run.run_directory import read_metrics
from fedlora_simulations.device_threads import DeviceThreads
from fedlora_simulations.engines import run_in_process
from fedlora_simulations.nodes import node_configs
from fedlora_simulations.simulation import settled
from fedlora_simulations.study.pooled import trained_on_all

from last_block import LastBlock

Line = dict[str, Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("-o", "--output", type=Path, required=True)
    given = arguments.parse_args()
    content = tomllib.loads(given.file.read_text(encoding="utf-8"))
    given.output.mkdir(parents=True, exist_ok=True)
    results = given.output / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    with patch.object(opened, "open_model", LastBlock):
        for name, config in runs_of(content, str(given.file)):
            if not any(line["name"] == name and line["config"] == config.flat() for line in lines):
                lines.append({"name": name, "seed": config.seed, "config": config.flat(), **measured(name, config)})
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    wanted = [(name, config.flat()) for name, config in runs_of(content, str(given.file))]
    print(table([line for line in lines if (line["name"], line["config"]) in wanted]))


def runs_of(content: Mapping[str, Any], where: str) -> Iterator[tuple[str, RunConfig]]:
    """(row, configuration), seed by seed, so that there is a whole table early."""
    scenario = flattened(content["scenario"])
    for seed in content["seeds"]:
        for name, changes in content["rows"].items():
            yield (
                name,
                RunConfig.from_flat({"name": "screening", **scenario, **flattened(changes), "seed": seed}, where),
            )


def measured(name: str, config: RunConfig) -> Line:
    """{accuracy, loss: of the test set, seconds}; devices compute one after another."""
    began, config = time.monotonic(), settled(config)
    if name.startswith("pooled"):
        devices = [Device(config, node) for node in node_configs(config)]
        with DeviceThreads(1) as threads:
            adapter = threads.submit(lambda: trained_on_all(config, devices)).result()
            parts = list(threads.map(lambda device: device.measure("test", adapter), devices))
        counts = sum((part.labels for part in parts if part.labels), LabelCounts.none(config_labels(parts)))
        loss = sum(part.loss * part.tokens for part in parts) / counts.texts
        found: Line = {"accuracy": counts.scores()["accuracy"], "loss": loss}
    else:
        with own_folder("screening") as folder:
            run = folder / "run"
            run_in_process(
                dataclasses.replace(config, output=str(run)), workers=1, on_push=lambda message: None,
                on_done=lambda message: None,
            )  # fmt: skip
            found = {key: read_metrics(run)[-1]["test"][key] for key in ("accuracy", "loss")}
    return {**found, "seconds": time.monotonic() - began}


def config_labels(parts: Iterable[Any]) -> int:
    return next(len(part.labels.actual) for part in parts if part.labels)


def table(lines: Iterable[Line]) -> str:
    """Markdown: means over the seeds that there are, and their standard deviation."""
    rows: dict[str, list[Line]] = {}
    for line in lines:
        rows.setdefault(line["name"], []).append(line)
    told = ["| row | accuracy | loss | seeds |", "|---|--:|--:|--:|"]
    for name, own in rows.items():
        accuracies = [100 * line["accuracy"] for line in own]
        spread = f" ± {stdev(accuracies):.1f}" if len(own) > 1 else ""
        told.append(
            f"| {name} | {fmean(accuracies):.1f}{spread} | {fmean(line['loss'] for line in own):.3f} | {len(own)} |"
        )
    return "\n".join(told)


if __name__ == "__main__":
    main()
