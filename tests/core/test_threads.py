"""How threads wait is settled before torch is imported, and told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fedlora.threads import cores

POLICY = "OMP_WAIT_POLICY"


def after(statement: str, **environment: str) -> tuple[str, str]:
    """(the policy, what `waiting` says) of a fresh process after a statement."""
    code = (
        f"import os\n{statement}\nfrom fedlora.threads import waiting\n"
        f"print(os.environ.get({POLICY!r}))\nprint(waiting())"
    )
    inherited = {name: value for name, value in os.environ.items() if name != POLICY}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    policy, told = result.stdout.splitlines()
    return policy, told


@pytest.mark.parametrize("package", ["fedlora_client.ops.compute", "fedlora_simulations.engines"])
def test_threads_sleep_while_they_wait_in_whatever_imports_torch(package: str) -> None:
    assert after(f"import {package}") == ("passive", "sleeping")


def test_what_the_environment_says_stays() -> None:
    policy, told = after("import fedlora_client", **{POLICY: "active"})
    assert policy == "active"
    assert told == "spinning (OMP_WAIT_POLICY=active): slow beside other work"


def test_torch_that_was_there_first_is_told() -> None:
    policy, told = after("import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import fedlora_client")
    assert policy == "None"
    assert told.startswith("spinning (torch was imported before fedlora)")


def test_there_is_a_core_at_least() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
