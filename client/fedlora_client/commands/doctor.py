"""`fedlora doctor`: what this machine trains with, and why not with something faster."""

from __future__ import annotations

import platform

import click
from fedlora.counted import counted
from fedlora.native import compiler
from fedlora.terminal import Terminal
from fedlora.threads import cores, waiting
from rich import box
from rich.table import Table


@click.command()
def doctor() -> None:
    """Show the path that training takes on this machine: kernels, numbers, threads, memory."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, finding in findings().items():
        table.add_row(name, finding)
    Terminal().print(table)


def findings() -> dict[str, str]:
    """{what: what was found}"""
    # Here: `fedlora --help` asks for this command's summary, and torch takes seconds to load.
    import torch

    from fedlora_client.ops.build import instruction_set
    from fedlora_client.ops.compute import DTYPES, choose_compute, decision, native_ops, product_gflops
    from fedlora_client.ops.native_ops import NativeOps
    from fedlora_client.training.memory import available_bytes, resident_bytes

    kernels = native_ops()
    speeds = {name: product_gflops(dtype) for name, dtype in DTYPES.items()}
    compute = choose_compute()
    return {
        "training runs in": str(compute),
        "numbers": decision(compute),
        "kernels": f"compiled and checked: {kernels.library}" if isinstance(kernels, NativeOps) else f"none: {kernels}",
        "C compiler": " ".join(compiler() or ["none: install gcc or clang, and training gets faster"]),
        "instruction set": f"{instruction_set()} ({platform.machine()})",
        "threads": f"{torch.get_num_threads()} of {counted(cores(), 'core')} (OMP_NUM_THREADS sets them)",
        "while they wait, threads are": waiting(),
        "products": ", ".join(f"{name} {speed:.0f} GFLOP/s" for name, speed in speeds.items()),
        "memory": f"{available_bytes() / 1e9:.1f} GB free; this process takes {resident_bytes() / 1e6:.0f} MB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
    }
