"""The modules of an adapter, worked on side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from fedlora.threads import cores
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


def parallel_modules(work: Callable[[str], T], modules: Iterable[str]) -> dict[str, T]:
    """{module: work(module)}, a thread per core, in the order of `modules`.

    BLAS has one thread meanwhile: the matrices of a module are too small for several, which would wait for each other.
    """
    names = list(modules)
    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(cores(), "module") as pool:
        return dict(zip(names, pool.map(work, names), strict=True))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
