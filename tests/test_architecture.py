"""The rule of the house: who may import whom, what a package promises, and what a process does not load unasked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests.import_graph import Graph, circle_in, graph_of, imports_in, modules_of, out_of_order

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = {
    "fedlora": "core",
    "fedlora_client": "client",
    "fedlora_server": "server",
    "fedlora_export": "export",
    "fedlora_serve": "serve",
    "fedlora_simulations": "simulations",
}
# Besides itself; simulations may import all.
MAY_IMPORT = {package: {package, "fedlora"} for package in PACKAGES} | {"fedlora_simulations": set(PACKAGES)}

FORBIDDEN = {
    "fedlora": {"torch", "flwr", "onnx", "onnx_ir", "onnxruntime", "transformers", "tokenizers", "peft"},
    "fedlora_client": {"transformers", "peft", "onnx", "onnx_ir", "onnxruntime"},
    "fedlora_server": {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxruntime"},
    "fedlora_export": {"torch", "flwr", "transformers", "peft"},
    "fedlora_serve": {"torch", "flwr", "transformers", "peft", "onnx", "onnx_ir"},
    "fedlora_simulations": {"transformers", "peft"},
}


# The rooms of each package, lowest first: a room imports itself and those before it. The package's face stands above all.
ROOMS = {
    "fedlora": (
        "errors", "terminal", "counted", "numbered", "nearest", "version", "threads", "telemetry", "face", "plugins",
        "files", "identity", "native", "family", "lora", "base", "wire", "fleet", "peft", "combine", "config", "data",
        "exported", "row_lora",
        "graph", "release", "commands", "cli",
    ),
    "fedlora_client": (
        "courier", "records", "data", "ops", "kept_factors", "layers", "decoder", "encoder", "model", "training",
        "reference", "prefix", "evaluation", "opened", "answer_ends", "end_tokens", "frozen_beside", "device",
        "answers", "local_training", "policy", "service", "updating", "supervision", "app", "commands",
    ),
    "fedlora_server": (
        "ways", "bounded_pull", "replies", "exchange", "device_names", "checks", "copies", "stopwatch", "means", "methods",
        "aggregation", "run", "fleet", "distribution", "intake", "leader", "buffered_rounds", "rounds", "app", "commands",
    ),
    "fedlora_export": (
        "onnx_model", "adapter_export", "genai", "checks", "export", "merge", "commands",
    ),
    "fedlora_serve": (
        "errors", "limits", "step_watch", "session", "text", "adapters", "local", "text_encoder", "embedding",
        "classification", "batching", "http.protocol", "http.transport", "http.access", "http.service", "http.generation",
        "http.api", "commands",
    ),
    "fedlora_simulations": (
        "narrow", "datasets", "nodes", "checks", "device_accounts", "device_threads", "grid", "progress",
        "partition", "reports", "report", "engines",
        "alone", "evaluation", "simulation", "study", "releasing", "soup", "commands",
    ),
}  # fmt: skip

# What a package promises whoever imports it.
FACES = {
    "fedlora": (
        "Adapter", "BasePack", "FedloraError", "LoraConfig", "LoraPair", "PeftDirectory", "RunConfig", "Update",
        "__version__", "decode_update", "encode_update", "initial_adapter", "make_pack", "open_pack", "read_peft",
        "read_scenario", "write_peft",
    ),
    "fedlora_client": (
        "Device", "LocalRun", "LocalTraining", "Model", "TrainResult", "Watcher", "choose_compute", "evaluate",
        "open_model", "train",
    ),
    "fedlora_server": (
        "Aggregation", "Aggregator", "Global", "Method", "RobustRule", "Rounds", "RunDirectory", "find_method", "open_run",
        "read_metrics",
    ),
    "fedlora_export": (
        "export_base", "export_merged", "export_peft", "verify_folder",
    ),
    "fedlora_serve": (
        "AdapterStore", "BatchEngine", "Embedder", "Engine", "LoadedAdapter", "Request", "Sampling", "ServeConfig",
        "generate", "open_service",
    ),
    "fedlora_simulations": (
        "Results", "Study", "read_study", "rounds_table", "run_study", "simulate", "write_report",
    ),
}  # fmt: skip


def folder_of(package: str) -> Path:
    return ROOT / PACKAGES[package] / package


@cache
def imports_of(package: str) -> list[tuple[str, str]]:
    """("file:line", top-level name) of every import in a package."""
    return [
        (f"{path.relative_to(ROOT)}:{found.line}", found.name.split(".")[0])
        for path in modules_of(folder_of(package)).values()
        for found in imports_in(path.read_text(encoding="utf-8"), package)
    ]


@cache
def graph(package: str) -> Graph:
    return graph_of(folder_of(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_role_imports_only_itself_and_the_core(package: str) -> None:
    assert modules_of(folder_of(package)), f"{package} was not found"
    wrong = [(where, name) for where, name in imports_of(package) if name in PACKAGES.keys() - MAY_IMPORT[package]]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_role_does_without_what_its_devices_do_not_install(package: str) -> None:
    assert [(where, name) for where, name in imports_of(package) if name in FORBIDDEN[package]] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_role_imports_no_tests_and_no_benchmarks(package: str) -> None:
    assert [(where, name) for where, name in imports_of(package) if name in ("tests", "benchmarks", "pytest")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_itself_and_the_rooms_below_it(package: str) -> None:
    assert out_of_order(graph(package), ROOMS[package]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_there(package: str) -> None:
    assert [room for room in ROOMS[package] if f"{package}.{room}" not in modules_of(folder_of(package))] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert circle_in(graph(package)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_the_face_that_it_promises(package: str) -> None:
    face = import_module(package)
    assert sorted(face.__all__) == sorted(FACES[package])
    assert [name for name in face.__all__ if getattr(face, name, None) is None] == []
    assert set(face.__all__) <= set(dir(face))


def loaded_by(statements: Sequence[str]) -> dict[str, set[str]]:
    """{statement: the top-level modules of one fresh process after it}, for statements one after another"""
    code = "import sys\n" + "".join(
        f"{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))\n" for statement in statements
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return dict(zip(statements, (set(line.split()) for line in result.stdout.splitlines()), strict=True))


COMMANDS = {
    "fedlora": ("pack", "inspect", "combine", "key"),
    "fedlora_client": ("train", "doctor", "device", "update"),
    "fedlora_server": ("server", "publish"),
    "fedlora_export": ("export", "export_adapter", "verify"),
    "fedlora_serve": ("generate", "serve", "canary"),
    "fedlora_simulations": (
        "simulate",
        "resume",
        "study",
        "demo",
        "partition",
        "release",
        "evaluate",
        "report",
        "soup",
    ),
}


# What a process does without after all the statements of a line, it does without after any of them: they share one.
@pytest.mark.parametrize(
    ("statements", "absent"),
    [
        ([f"import {package}" for package in PACKAGES], {"torch", "flwr", "onnx", "onnxruntime", "fastapi"}),
        (
            [
                "import fedlora.cli",
                *(f"import {of}.commands.{name}" for of, names in COMMANDS.items() for name in names),
            ],
            {"torch", "flwr", "onnx", "onnxruntime", "fastapi", "cryptography", "transformers"},
        ),
        (
            ["import fedlora, fedlora_serve.local.engine", "import fedlora_serve.http.api.app"],
            {"torch", "flwr", "transformers", "onnx"},
        ),
        (["import fedlora_export.export, fedlora_export.merge"], {"torch", "flwr", "transformers"}),
        (["import fedlora_client.app", "import fedlora_server.app"], {"torch", "onnxruntime", "transformers", "peft"}),
    ],
    ids=("packages", "commands", "serving", "exporting", "apps"),
)
def test_a_fresh_process_does_not_load_what_it_does_not_need(statements: list[str], absent: set[str]) -> None:
    assert {after: found & absent for after, found in loaded_by(statements).items() if found & absent} == {}


def test_help_and_what_only_reads_and_writes_files_loads_no_runtime(tmp_path: Path) -> None:
    runs = [
        ["--help"],
        *([name.replace("_", "-"), "--help"] for names in COMMANDS.values() for name in names),
        ["inspect", "nano"],
        ["server", "init", "fleet", "--host", "localhost"],
        *(["server", name, "kitchen", "--dir", "fleet"] for name in ("enrol", "revoke")),
        ["server", "rotate", "fleet"],
        ["device", "join", "kitchen.json", "--dir", "device", "--base", "nano", "--data", "notes.txt"],
        *(["device", name, "--dir", "device"] for name in ("status", "pause", "resume")),
    ]
    (tmp_path / "notes.txt").write_text("Something to learn. " * 50, encoding="utf-8")
    start = [f"import os, click.testing, fedlora.cli; os.chdir({str(tmp_path)!r})"]
    invoked = [f"click.testing.CliRunner().invoke(fedlora.cli.commands, {run!r})" for run in runs]
    told = loaded_by([*start, *(f"done = {one}; assert not done.exit_code, ({one!r}, done.output)" for one in invoked)])
    heavy = {"torch", "flwr", "onnx", "onnxruntime", "transformers"}
    assert {after: found & heavy for after, found in told.items() if found & heavy} == {}
