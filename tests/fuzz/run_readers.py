"""Readers of what travels and what a run leaves: updates, bundles, runs, scenarios, studies, states."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from fedlora.config.run import RunConfig, read_scenario
from fedlora.fleet.bundle import read_bundle
from fedlora.lora.config import LoraConfig
from fedlora.wire.update import Update, decode_update, encode_update

from tests.fuzz.reader import Reader, files_reader, full_base, written
from tests.tiny.adapters import adapter_on


def updates(folder: Path) -> Reader:
    modules = {"model.layers.0.self_attn.q_proj": (8, 8), "model.layers.1.mlp.up_proj": (16, 8)}
    adapter = adapter_on(LoraConfig(rank=2, target_modules=("q_proj", "up_proj")), modules)
    update = Update(
        adapter=adapter, run="1", server_round=1, base_fingerprint="f" * 64, num_examples=9, metrics={"loss": 1.0},
        frozen=adapter,
    )  # fmt: skip
    for codec in ("f32", "f16"):
        written(folder / "updates", {f"{codec}.update": encode_update(update, codec)})

    def read(place: Path, name: str) -> None:
        decode_update((place / name).read_bytes())

    return Reader(folder / "updates", ("f32.update", "f16.update"), read, are_messages=True)


def bundles(folder: Path) -> Reader:
    from tests.tiny.bundles import bundle_fields

    content = {"format": "fedlora-device-1", **bundle_fields()}
    written(folder / "bundle", {"b.json": json.dumps(content)})
    (folder / "bundle" / "b.json").chmod(0o600)
    return files_reader(folder / "bundle", lambda place: read_bundle(place / "b.json"))


def runs(folder: Path) -> Reader:
    """The directory of a run of two rounds, as a server goes on with it and a report reads it."""
    from fedlora_server.run.round_directory import write_round
    from fedlora_server.run.round_record import RoundRecord
    from fedlora_server.run.run_directory import RunDirectory, loss_unit, open_run, read_config, read_metrics

    base = full_base(folder)
    first = adapter_on(LoraConfig(rank=2, target_modules=("q_proj",)), base.model.linear_modules())
    config = RunConfig(base=str(base.directory))
    run = folder / "run"
    with open_run(run, config, base, "7") as directory:
        for number in range(3):
            record = RoundRecord(number, devices=2, replies=2, loss={"a": 1.0}, nodes={"a": 5}, measured_of=1)
            if number:
                write_round(run / "rounds" / f"{number:04d}", first, {}, record, base, "7")
            directory.add_metrics(record)

    def read(place: Path) -> None:
        loss_unit(place)
        read_config(place)
        read_metrics(place)
        directory = RunDirectory(place, base)
        directory.nodes()
        for number in range(1, directory.last_round + 1):
            directory.read(number, first)
            directory.record(number)

    return files_reader(run, read)


def scenarios(folder: Path) -> Reader:
    project = Path(__file__).resolve().parents[2]
    files = {"run.toml": (project / "simulations/scenarios/demo.toml").read_bytes()}
    return files_reader(written(folder / "scenario", files), lambda place: read_scenario(place / "run.toml"))


def studies(folder: Path) -> Reader:
    from fedlora_simulations.study.file import read_study
    from fedlora_simulations.study.results import Results

    project = Path(__file__).resolve().parents[2]
    line = json.dumps(
        {"digest": "d", "row": "svd", "setting": "x", "seed": 1, "lr": 0.1, "loss": 1.0, "config": {"a": 1}}
    )
    files = {
        "study.toml": (project / "simulations/studies/methods-stdlib.toml").read_bytes(),
        "results.jsonl": f"{line}\n{line}\n".encode(),
    }

    def read(place: Path, name: str) -> None:
        if name == "study.toml":
            read_study(place / name)
        else:
            assert Results(place).are_from_before in (True, False)

    return Reader(written(folder / "study", files), tuple(files), read)


def reports(folder: Path) -> Reader:
    """What a run and a study leave, as a page shows it; pictures are not drawn."""
    from fedlora_simulations.commands.report import _panels
    from fedlora_simulations.reports.comma_separated import chart_csv, table_csv
    from fedlora_simulations.reports.contents import report_of
    from fedlora_simulations.reports.latex import latex

    losses = {"kitchen": 2.0, "cellar": 3.0}
    record = {
        "loss": losses, "train_loss": losses, "accuracy": losses, "scores": {"accuracy": 0.5}, "test": {"loss": 1.0},
        "never_trained_loss": losses, "never_trained": {"mean": 2.0, "worst_tenth": 3.0, "accuracy": 0.5},
        "costs": {"kitchen": {"step_s": 1.0, "peak_mb": 100.0}}, "excluded": {"late": 1}, "later": {"kitchen": 1.0},
    }  # fmt: skip
    result = {
        "digest": "d", "row": "svd", "setting": "x", "seed": 1, "lr": 0.1, "loss": 1.0, "base_loss": 2.0,
        "measures": {"accuracy": 0.5}, "config": {"server.rounds": 3, "train.lr": "auto"},
    }  # fmt: skip
    files = {
        "run/config.json": json.dumps({**RunConfig().flat(), "of.a.later.version": 1}),
        "run/run.json": json.dumps({"run": "7", "base_fingerprint": "f" * 64}),
        "run/metrics.jsonl": "".join(json.dumps({"round": number, **record}) + "\n" for number in range(3)),
        "run/partition.json": json.dumps({"devices": {"kitchen": {"a": 3, "b": 4}, "cellar": {"2": 1}}, "test": 2}),
        "run/environment.json": json.dumps({"torch": "2"}),
        "run/baselines.json": json.dumps({"alone": {"kitchen": 2.5}}),
        "study/results.jsonl": "".join(json.dumps({**result, "digest": row, "row": row}) + "\n" for row in ("svd", "ffa")),
    }  # fmt: skip

    def read(place: Path, name: str) -> None:
        report = report_of(_panels([(place / name).parent]))
        for section in report.sections:
            for table in section.all_tables:
                latex(table), table_csv(table)
            for chart in section.charts:
                chart_csv(chart)

    return Reader(written(folder / "reports", files), tuple(files), read)


def services(folder: Path) -> Reader:
    from fedlora_serve.http.service.config_file import read_config

    content = """host = "127.0.0.1"
port = 8001
adapter_folder = "adapters"

[adapters]
mine = "adapters/mine"

[limits]
max_tokens = 1024
max_n = 4

[[keys]]
name = "web"
key = "0123456789abcdef-web"
models = ["mine", "team-*"]
requests_per_minute = 600

[[keys]]
name = "other"
key_sha256 = "0000000000000000000000000000000000000000000000000000000000000001"
"""
    place = written(folder / "service", {"serve.toml": content, "adapters/mine/x": ""})
    return files_reader(place, lambda place: read_config(place / "serve.toml", {}, {}), "serve.toml")


def states(folder: Path) -> Reader:
    """The state of a training that died, and the factors that a device keeps."""
    import numpy as np
    from fedlora.config.run import TrainConfig
    from fedlora_client.data.windows import make_windows
    from fedlora_client.decoder.decoder import Decoder
    from fedlora_client.kept_factors import KeptFactors
    from fedlora_client.ops.compute import choose_compute
    from fedlora_client.training.trainer import Saving, train

    from tests.tiny.tokenizer import byte_tokenizer

    base = full_base(folder)
    model = Decoder(base, choose_compute("float32"))
    adapter = adapter_on(LoraConfig(rank=2, target_modules=("q_proj",)), base.model.linear_modules())
    windows = make_windows(["the quick brown fox"] * 9, byte_tokenizer(), base.shape, 12, "here")
    config = TrainConfig(steps=2, batch_size=2, sequence_length=12, compute="float32")
    (folder / "state").mkdir()
    kept = partial(KeptFactors, factor="B", whose="a device", run="7")
    kept(folder=folder / "state").keep(adapter, 1)
    names = [path.name for path in (folder / "state").iterdir()]

    def go_on(place: Path) -> None:
        saving = Saving(file=place / "state.safetensors", every=1, keeps=True)
        train(model, adapter, windows, config, np.random.default_rng(1), saving=saving)

    go_on(folder / "state")

    def read(place: Path, name: str) -> None:
        if name in names:
            kept(folder=place).put_into(adapter, newest=3)
        else:
            go_on(place)

    return Reader(folder / "state", ("state.safetensors", *names), read)


def devices(folder: Path) -> Reader:
    """The configuration of a device, and that of a fleet's server."""
    from fedlora_client.service.config import read_device
    from fedlora_server.fleet.settings import FleetSettings, read_settings, settings_text

    device = """[device]
name = "kitchen"
base = "nano"
state = "state"
socket = "run/device.sock"

[data]
source = "notes.txt"

[policy]
runs = ["7"]

[server]
superlink = "fleet.example.org:9092"

[serve]
on_commit = ["echo", "{adapter}"]
"""
    server = settings_text(FleetSettings(folder=folder, host="fleet.example.org", run={"base": "nano"}))
    files = {"device.toml": device, "server.toml": server}

    def read(place: Path, name: str) -> None:
        if name == "device.toml":
            read_device(place / name)
        else:
            read_settings(place)

    return Reader(written(folder / "fleet", files), tuple(files), read)
