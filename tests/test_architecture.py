"""The rule of the house: who may import whom, what a package promises, and what a process does not load unasked."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.import_graph import circle_in, graph_of, imports_in, modules_of, out_of_order

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
        "errors", "terminal", "nearest", "version", "threads", "telemetry", "face", "plugins", "files", "native", "family",
        "lora", "base", "wire", "fleet", "peft", "config", "data", "exported", "row_lora", "graph",
        "commands", "cli",
    ),
    "fedlora_client": (
        "courier", "records", "data", "ops", "kept_factors", "layers", "decoder", "encoder", "model", "training",
        "reference", "opened", "answer_ends", "end_tokens", "device", "answers", "local_training", "policy", "service",
        "supervision", "app", "commands",
    ),
    "fedlora_server": (
        "bounded_pull", "exchange", "device_names", "checks", "copies", "stopwatch", "means", "methods", "aggregation",
        "run", "fleet", "intake", "leader", "buffered_rounds", "rounds", "app", "commands",
    ),
    "fedlora_export": (
        "onnx_model", "adapter_export", "genai", "checks", "export", "merge", "commands",
    ),
    "fedlora_serve": (
        "errors", "limits", "step_watch", "session", "text", "adapters", "local", "embedding", "batching", "http.protocol",
        "http.transport", "http.access", "http.service", "http.generation", "http.api", "commands",
    ),
    "fedlora_simulations": (
        "datasets", "nodes", "checks", "device_accounts", "device_threads", "grid", "progress", "report", "engines",
        "alone", "simulation", "study", "commands",
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


def imports_of(package: str) -> list[tuple[str, str]]:
    """("file:line", top-level name) of every import in a package."""
    return [
        (f"{path.relative_to(ROOT)}:{found.line}", found.name.split(".")[0])
        for path in modules_of(folder_of(package)).values()
        for found in imports_in(path.read_text(encoding="utf-8"), package)
    ]


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
    assert out_of_order(graph_of(folder_of(package)), ROOMS[package]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_there(package: str) -> None:
    assert [room for room in ROOMS[package] if f"{package}.{room}" not in modules_of(folder_of(package))] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert circle_in(graph_of(folder_of(package))) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_the_face_that_it_promises(package: str) -> None:
    face = import_module(package)
    assert sorted(face.__all__) == sorted(FACES[package])
    assert [name for name in face.__all__ if getattr(face, name, None) is None] == []
    assert set(face.__all__) <= set(dir(face))


def loaded_by(statement: str) -> set[str]:
    """The top-level modules of a fresh process after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        *((f"import {package}", {"torch", "flwr", "onnx", "onnxruntime", "fastapi"}) for package in PACKAGES),
        ("import fedlora.cli", {"torch", "flwr", "onnx", "onnxruntime"}),
        ("import fedlora, fedlora_serve.local.engine", {"torch", "flwr", "transformers"}),
        ("import fedlora_serve.commands.generate", {"torch", "flwr", "transformers"}),
        ("import fedlora_serve.http.api.app", {"torch", "flwr", "transformers", "onnx"}),
        ("import fedlora_export.commands.export", {"torch", "flwr", "transformers"}),
        ("import fedlora_server.app", {"torch", "onnxruntime", "transformers"}),
        ("import fedlora_server.commands.server", {"torch", "flwr", "cryptography"}),
        *(
            (f"import fedlora_{role}.commands.{name}", {"torch", "flwr", "onnxruntime"})
            for role, names in (
                ("simulations", ("simulate", "resume", "study", "demo")),
                ("client", ("train", "doctor", "device")),
            )
            for name in names
        ),
        ("import fedlora_client.app", {"torch", "onnxruntime", "transformers", "peft"}),
    ],
)
def test_a_fresh_process_does_not_load_what_it_does_not_need(statement: str, absent: set[str]) -> None:
    assert loaded_by(statement) & absent == set()
