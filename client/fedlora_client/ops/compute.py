"""What a step computes with: a device, a dtype, and the operations besides products."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cache

import torch
from fedlora.errors import ConfigError
from fedlora.native import BuildError, loaded_library
from torch import Tensor

from fedlora_client.ops.build import built_library, instruction_set
from fedlora_client.ops.native_ops import NativeOps
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.plain_ops import PlainOps
from fedlora_client.ops.processor import processor
from fedlora_client.ops.remembered import file_of, place_of, recall, remember
from fedlora_client.ops.self_check import disagreement

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ROWS, _OUT, _IN = 512, 1024, 512  # of the product that is timed
_REPEATS = 5
_GPU_ROWS = 8192
# Times as fast as float32, from which bfloat16 is taken: what it loses in exactness has to be worth it, and a processor
# that can do it is ahead by more, one that cannot is behind by far.
_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Compute:
    """Shared by every thread of a process: it has no state."""

    device: torch.device
    dtype: torch.dtype
    ops: Ops

    @property
    def rows(self) -> int:
        """How many rows a product takes at a time: more would gain little, and hold more activations."""
        return self.ops.rows if self.device.type == "cpu" else _GPU_ROWS

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device.type}, {self.ops.name}"


@cache
def choose_compute(dtype: str = "auto", kernels: str = "auto", device: str = "auto") -> Compute:
    """The fastest that this machine has, where a choice is "auto".

    dtype: float32, bfloat16 or auto; kernels: on, off or auto; device: cpu, cuda (or cuda:N) or auto. Raises ConfigError
    where what is asked for is not to be had.
    """
    where = _device(device)
    if where.type == "cpu":
        ops = _ops(kernels)
        chosen = faster_dtype(ops.name) if dtype == "auto" else DTYPES[dtype]
    else:
        if kernels == "on":
            raise ConfigError(f"train.kernels is on, and the kernels run on a CPU only; the device is {where}")
        ops = PlainOps()
        chosen = torch.bfloat16 if dtype == "auto" else DTYPES[dtype]
    return Compute(where, chosen, ops)


@cache
def product_gflops(dtype: torch.dtype) -> float:
    """The lower speed, in GFLOP/s, of x W^T and dy W on this CPU with the present number of threads."""
    x, w, dy = (torch.ones(shape, dtype=dtype) for shape in ((_ROWS, _IN), (_OUT, _IN), (_ROWS, _OUT)))
    seconds = 0.0

    def forward() -> Tensor:
        return x @ w.T

    def backward() -> Tensor:
        return dy @ w

    for product in (forward, backward):
        product()
        times = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            product()
            times.append(time.perf_counter() - started)
            if times[-1] > 0.1:  # a cliff: no need to fall down it again
                break
        seconds = max(seconds, min(times))
    return 2 * _ROWS * _OUT * _IN / seconds / 1e9


def faster_dtype(kernels: str) -> torch.dtype:
    """bfloat16 where its products are clearly the faster ones: that depends on the processor by a factor of 60 either way.

    Timed once on a machine, and remembered: all processes decide alike, however busy it is.
    """
    file = decision_file(kernels)
    speeds = recall(file)
    if speeds is None or speeds.keys() != DTYPES.keys():
        speeds = {name: product_gflops(dtype) for name, dtype in DTYPES.items()}
        remember(file, speeds)
    return DTYPES["bfloat16" if speeds["bfloat16"] >= _MARGIN * speeds["float32"] else "float32"]


def decision_file(kernels: str) -> str:
    """The file in which `faster_dtype` remembers what it found with these kernels."""
    return file_of(processor(), torch.__version__, kernels)


def decision(compute: Compute) -> str:
    """How the dtype of `compute` comes about where nobody names one, for a person."""
    if compute.device.type != "cpu":
        return "bfloat16, as on every GPU"
    file = decision_file(compute.ops.name)
    speeds, place = recall(file), place_of(file)
    if speeds is None or place is None:
        return (
            "timed by each process: nothing is remembered, for the cache cannot be used (set FEDLORA_CACHE to a folder)"
        )
    ratio = speeds["bfloat16"] / speeds["float32"]
    return (
        f"bfloat16 was x{ratio:.2g} as fast as float32 when that was timed, and is taken from x{_MARGIN} on; remembered "
        f"in {place} (remove it to have it timed again)"
    )


@cache
def native_ops() -> NativeOps | str:
    """The compiled kernels, checked against plain torch; or why there are none."""
    try:
        name = f"C kernels ({instruction_set()})"
        ops = loaded_library(built_library, lambda library: NativeOps(library, name))
    except (BuildError, OSError, AttributeError) as error:
        return str(error)
    wrong = disagreement(ops)
    if wrong:
        warnings.warn(f"{ops.library}: {wrong}; training goes on in plain torch", RuntimeWarning, stacklevel=2)
        return wrong
    return ops


def _ops(kernels: str) -> Ops:
    if kernels == "off":
        return PlainOps()
    found = native_ops()
    if isinstance(found, NativeOps):
        return found
    if kernels == "on":
        raise ConfigError(
            f"train.kernels is on, and there are no kernels: {found}; install a C compiler, or set it to auto"
        )
    return PlainOps()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"train.device must be cpu, cuda or auto, got {name!r}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = str(error).splitlines()[0]
        raise ConfigError(
            f"train.device is {name!r}, which this machine does not have: {what}; expected auto"
        ) from None
    return device
