"""The rule of the house: who may import whom, and what stays out of a process that does not need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / PACKAGES[package] / package).rglob("*.py"))


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every import of a module, those inside functions too; a relative one is of `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else str(node.module).split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield node.lineno, str(name.value).split(".")[0]


def imports_of(package: str) -> list[tuple[str, str]]:
    """("file:line", top-level name) of every import in a package."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", name)
        for path in modules_of(package)
        for line, name in imported(path.read_text(encoding="utf-8"), package)
    ]


def test_the_reader_of_imports_sees_every_kind() -> None:
    source = (
        "import torch.nn as nn, os\nfrom flwr.app import Message\nfrom . import x\n"
        "def f():\n    import onnx\n    importlib.import_module('ray.data')\n"
    )
    names = {name for _, name in imported(source, "here")}
    assert names == {"torch", "os", "flwr", "here", "onnx", "ray"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_role_imports_only_itself_and_the_core(package: str) -> None:
    assert modules_of(package), f"{package} was not found"
    wrong = [(where, name) for where, name in imports_of(package) if name in PACKAGES.keys() - MAY_IMPORT[package]]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_role_does_without_what_its_devices_do_not_install(package: str) -> None:
    assert [(where, name) for where, name in imports_of(package) if name in FORBIDDEN[package]] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_role_imports_no_tests_and_no_benchmarks(package: str) -> None:
    assert [(where, name) for where, name in imports_of(package) if name in ("tests", "benchmarks", "pytest")] == []


def loaded_by(statement: str) -> set[str]:
    """The top-level modules of a fresh process after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fedlora", {"torch", "flwr", "onnx", "onnxruntime"}),
        ("import fedlora.cli", {"torch", "flwr", "onnx", "onnxruntime"}),
        ("import fedlora, fedlora_serve.local.engine", {"torch", "flwr", "transformers"}),
        ("import fedlora_serve.commands.generate", {"torch", "flwr", "transformers"}),
        ("import fedlora_serve.http.api.app", {"torch", "flwr", "transformers", "onnx"}),
        ("import fedlora_export.commands.export", {"torch", "flwr", "transformers"}),
        ("import fedlora_server.app", {"torch", "onnxruntime", "transformers"}),
        ("import fedlora_client.app", {"onnxruntime", "transformers", "peft"}),
    ],
)
def test_a_fresh_process_does_not_load_what_it_does_not_need(statement: str, absent: set[str]) -> None:
    assert loaded_by(statement) & absent == set()
