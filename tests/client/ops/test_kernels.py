"""The compiled kernels: built once, found again, checked before they are trusted, and never missed where they cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fedlora.errors import ConfigError
from fedlora.native import BuildError, instruction_flags
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops import build, compute
from fedlora_client.ops.build import built_library, instruction_set
from fedlora_client.ops.compute import choose_compute
from fedlora_client.ops.native_ops import NativeOps
from fedlora_client.ops.plain_ops import PlainOps
from fedlora_client.ops.self_check import disagreement

from tests.tiny.llamas import Packs, Variant

# What a fast build needs: the sabotaged ones are only asked whether they are wrong.
QUICK = ("-O0", "-std=gnu11", "-fPIC")
# (the operation that is caught, what stands in kernels.c, what takes its place)
SABOTAGE = [
    ("dequantize (4 bits)", "(float)(i - zero) * scale", "(float)(i - zero + 1) * scale"),
    ("dequantize (8 bits)", "(float)((int)codes[i] - zero)", "(float)((int)codes[i] - zero - 1)"),
    ("rms_norm", "squares / (float)width + eps", "squares / (float)width"),
    ("split_heads", "second * cosine[i] + first * s", "second * cosine[i] - first * s"),
    ("softmax", "begin = starts[row / (heads * queries) * length + last]", "begin = 0"),
    ("swiglu", "share + silu * (1.0f - share)", "share + silu * share"),
    ("geglu", "share + gelu * (1.0f - share) * gelu_slope(g)", "share + gelu * (1.0f - share)"),
    ("cross_entropy_backward", "(exponential(wanted - shift) - 1.0f) * scale", "exponential(wanted - shift) * scale"),
    # Rows that lie further apart than they are long.
    ("split_heads", "NAME(rotate)(rows + n * stride", "NAME(rotate)(rows + n * heads * size"),
    ("swiglu", "*gates = gate + row * gate_apart", "*gates = gate + row * up_apart"),
    ("swiglu", "*ups = up + row * up_apart, *upstream", "*ups = up + row * width, *upstream"),
]
# The exponential is in three of them; the first that is checked is named.
IMPRECISE = ("p = p * r + 1.6666665459e-1f;", "p = p * r + 1.66e-1f;")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and nothing remembered of other tests."""
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def forget() -> None:
    compute.native_ops.cache_clear()
    compute.choose_compute.cache_clear()


def sabotage(monkeypatch: pytest.MonkeyPatch, folder: Path, before: str, after: str) -> None:
    """Have the kernels built from a copy that computes something else."""
    source = build.SOURCE.read_text()
    assert before in source
    copy = folder / "kernels.c"  # it includes itself by this name
    copy.write_text(source.replace(before, after))
    monkeypatch.setattr(build, "SOURCE", copy)
    isa = instruction_flags(instruction_set())
    monkeypatch.setattr(build, "_FLAGS", (*QUICK, *isa))


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that runs `code`; a warning ends it."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def printed(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return out.strip()


def test_kernels_are_compiled_once_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = built_library()
    assert library.parent == cache
    assert list(cache.iterdir()) == [library]  # and nothing beside it
    written = library.stat().st_mtime_ns
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setenv("PATH", "")
    assert built_library() == library
    assert library.stat().st_mtime_ns == written
    assert disagreement(NativeOps(library, "kernels")) is None
    chosen = choose_compute("float32", "on", "cpu")
    assert isinstance(chosen.ops, NativeOps)
    assert str(chosen) == f"float32 on cpu, C kernels ({instruction_set()})"


def test_another_source_or_other_flags_are_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", (*QUICK, *instruction_flags(instruction_set())))
    first = built_library()
    sabotage(monkeypatch, tmp_path, "/* Everything", "/* Nearly everything")
    second = built_library()
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
    assert len({first, second, built_library()}) == 3


@pytest.mark.parametrize("compiler", ["none", "failing", "hopeless"])
def test_without_a_working_compiler_training_is_in_plain_torch_without_noise(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    tool = tmp_path / "cc"
    if compiler != "none":
        # `hopeless` has no interpreter to run it
        tool.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n" if compiler == "failing" else "#!/nowhere\n")
        tool.chmod(0o755)
    monkeypatch.setenv("CC", str(tool))
    monkeypatch.setenv("PATH", "/nowhere" if compiler == "none" else os.environ["PATH"])
    chosen = choose_compute("float32", "auto", "cpu")  # a warning would be an error
    assert isinstance(chosen.ops, PlainOps)
    assert str(chosen) == "float32 on cpu, plain torch"
    why = {"none": "which is not installed", "failing": "no space left", "hopeless": "No such file"}[compiler]
    with pytest.raises(
        ConfigError, match=f"train.kernels is on, and there are no kernels: .*{why}.*; install a C comp"
    ):
        choose_compute("float32", "on", "cpu")
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError):
        built_library()
    assert isinstance(choose_compute("float32", "auto", "cpu").ops, PlainOps)


@pytest.mark.parametrize("length", [0, 500])
def test_a_damaged_library_in_the_cache_is_compiled_again(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(build, "_FLAGS", (*QUICK, *instruction_flags(instruction_set())))
    library = built_library()
    content = library.read_bytes()
    library.unlink()  # never write into a library: it may be mapped
    library.write_bytes(content[:length])
    found = compute.native_ops()
    assert isinstance(found, NativeOps)
    assert found.library == library


def test_a_library_that_lacks_a_function_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, tmp_path, "void NAME(swiglu_backward)", "void NAME(swiglu_forward)")
    assert isinstance(choose_compute("float32", "auto", "cpu").ops, PlainOps)
    with pytest.raises(ConfigError, match=r"there are no kernels: "):
        choose_compute("float32", "on", "cpu")


@pytest.mark.parametrize(("operation", "before", "after"), SABOTAGE)
def test_kernels_that_compute_wrong_numbers_are_caught_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, before: str, after: str
) -> None:
    sabotage(monkeypatch, tmp_path, before, after)
    wrong = disagreement(NativeOps(built_library(), "sabotaged"))
    assert wrong is not None
    assert wrong.startswith(f"{operation} in torch.float32 differs from plain torch by ")


def test_wrong_kernels_are_told_of_and_training_goes_on_in_plain_torch(
    packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, tmp_path, *IMPRECISE)
    with pytest.warns(RuntimeWarning, match=r"softmax in torch.float32 differs .*; training goes on in plain torch"):
        chosen = choose_compute("float32", "auto", "cpu")
    assert isinstance(chosen.ops, PlainOps)
    tokens = torch.arange(12)[None]
    plain = choose_compute("float32", "off", "cpu")
    base = packs(Variant())
    assert torch.equal(Decoder(base, chosen).logits(tokens), Decoder(base, plain).logits(tokens))
    with pytest.raises(ConfigError, match=r"train.kernels is on, and there are no kernels: softmax in torch.float32"):
        choose_compute("float32", "on", "cpu")


CHECK = """
import torch
from fedlora_client.ops.compute import choose_compute, native_ops
from fedlora.native import instruction_flags
from fedlora_client.ops.build import built_library, instruction_set
ops = choose_compute("float32", "on", "cpu").ops
print(built_library().name, *(instruction_flags(instruction_set()) or ("baseline",)))
"""


@pytest.mark.slow
def test_a_lowered_instruction_set_gives_other_kernels_that_are_right_too() -> None:
    wanted = {"avx2": "-march=x86-64-v3", "default": "baseline"}
    running = {name: python(CHECK, ATEN_CPU_CAPABILITY=name) for name in wanted}
    results = {name: printed(process) for name, process in running.items()}
    for name, flag in wanted.items():
        assert flag in results[name]
    assert len({result.split()[0] for result in results.values()}) == len(wanted)


def test_processes_that_compile_at_once_do_not_disturb_each_other(cache: Path) -> None:
    isa = instruction_flags(instruction_set())
    quick = f"from fedlora_client.ops import build\nbuild._FLAGS = {(*QUICK, *isa)!r}\n"
    results = [printed(process) for process in [python(quick + CHECK) for _ in range(2)]]
    assert results[0] == results[1]
    assert [file.name for file in cache.iterdir()] == [results[0].split()[0]]


def test_bfloat16_and_float32_are_what_is_chosen_from() -> None:
    plain = choose_compute("float32", "off", "cpu").ops.name
    assert compute.faster_dtype(plain) in (torch.float32, torch.bfloat16)
    assert choose_compute("auto", "off", "cpu").dtype == compute.faster_dtype(plain)
    assert choose_compute("bfloat16", "off", "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_this_machine_lacks_is_refused_by_name(device: str) -> None:
    with pytest.raises(ConfigError, match=f"train.device is '{device}', which this machine does not have: "):
        choose_compute("float32", "auto", device)
