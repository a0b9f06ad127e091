"""ONNX Runtime is told to keep quiet before it is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAME = "ORT_DISABLE_TELEMETRY"


def told(package: str, **environment: str) -> str:
    """What a fresh process has told the runtime once it has imported a package, which has not imported the runtime."""
    code = f"import os, sys, {package}\nassert 'onnxruntime' not in sys.modules\nprint(os.environ['{NAME}'])"
    inherited = {name: value for name, value in os.environ.items() if name != NAME}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("package", ["fedlora_export", "fedlora_serve"])
def test_a_package_that_imports_the_runtime_silences_it_first(package: str) -> None:
    assert told(package) == "1"


def test_what_the_environment_says_already_stays() -> None:
    assert told("fedlora_serve", **{NAME: "0"}) == "0"
