"""What is installed is what was tested: constraints.txt pins all that pyproject.toml names, locks/ have it with hashes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: Mapping[str, list[str]] = DECLARED["optional-dependencies"]
LOCKED = {"device": ["client"], "server": ["server", "export", "serve"]}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pin:
    """A line of a lock."""

    version: str
    hashes: frozenset[str]


def required(extras: list[str]) -> Iterator[Requirement]:
    """What the package needs with some extras; an extra may name others of the package's own."""
    for text in [*DECLARED["dependencies"], *(each for extra in extras for each in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name == DECLARED["name"]:
            yield from required(sorted(requirement.extras))
        else:
            yield requirement


def constraints() -> dict[str, str]:
    """{name: version} of constraints.txt"""
    text = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    pins = (line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def lock(name: str) -> dict[str, Pin]:
    """{name: its pin} of a lock; nothing but pins with hashes may stand in one."""
    text = (PROJECT / "locks" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    pins: dict[str, Pin] = {}
    for line in text.splitlines():
        pinned, _, hashes = line.partition("--hash=")
        requirement = Requirement(pinned)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert requirement.url is None
        found = HASH.findall(f"--hash={hashes}")
        assert f"--hash={hashes}".split() == found, line
        pins[canonicalize_name(requirement.name)] = Pin(specifier.version, frozenset(found))
    return pins


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_constraints_pin_what_an_extra_names_as_it_asks(extra: str) -> None:
    pins = constraints()
    for requirement in required([extra]):
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


@pytest.mark.parametrize("name", [*LOCKED, "torch"])
def test_a_lock_has_the_tested_versions_each_with_its_hashes(name: str) -> None:
    pins, tested = lock(name), constraints()
    assert [each for each, pin in pins.items() if not pin.hashes] == []
    others = {each: pin.version for each, pin in pins.items() if tested.get(each, pin.version) != pin.version}
    assert others == {}, "run `make lock`"


@pytest.mark.parametrize(("name", "extras"), LOCKED.items())
def test_a_lock_has_what_its_machine_needs_but_torch(name: str, extras: list[str]) -> None:
    needed = {canonicalize_name(requirement.name) for requirement in required(extras)}
    assert needed - {"torch"} <= lock(name).keys(), "run `make lock`"
    assert "torch" not in lock(name), "its builds differ by index: locks/torch.txt has PyPI's"


def test_no_lock_brings_cuda_but_that_of_torch() -> None:
    gigabytes = re.compile(r"nvidia-.*|cuda-.*|triton")
    assert {name: [each for each in lock(name) if gigabytes.fullmatch(each)] for name in LOCKED} == {
        "device": [],
        "server": [],
    }
    assert lock("torch")["torch"].version == constraints()["torch"]


def test_the_makefile_installs_the_torch_that_is_pinned() -> None:
    told = set(re.findall(r"torch==([\d.]+)", (PROJECT / "Makefile").read_text(encoding="utf-8")))
    assert told == {constraints()["torch"]}
    assert f'version = "{constraints()["torch"]}"' in (PROJECT / "tools/lock/uv.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "check"), [("device", "--validate"), ("server", "--no-validate")])
def test_a_lock_becomes_a_cyclonedx_document_that_its_schema_takes(name: str, check: str, tmp_path: Path) -> None:
    # Checking against the schema takes seconds, and what the locks differ in is the list that is compared below.
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(PROJECT / "locks" / f"{name}.txt")]
    options = ["--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible", check]
    output = tmp_path / "sbom.cdx.json"
    done = subprocess.run(
        [*command, *options, "--output-file", str(output)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    components = json.loads(output.read_text(encoding="utf-8"))["components"]
    told = {canonicalize_name(each["name"]): each["version"] for each in components}
    assert told == {each: pin.version for each, pin in lock(name).items()}
