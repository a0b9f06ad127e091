"""The public names of a package whose modules are heavy: each is imported where it is first asked for (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_face(
    package: str,
    modules: Mapping[str, str],  # {public name: the module of the package that defines it}
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The package's `__getattr__` and `__dir__`.

    An import of one of its modules then loads neither torch nor ONNX Runtime nor a web server for the sake of the others.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get, lambda: sorted(modules)
